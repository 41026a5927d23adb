"""Variants of int8 prove themselves: their calls against integers, and what is between them against PyTorch as float is."""

from collections.abc import Callable
from typing import Any

from rt3_tvm.codegen.differing import Built, Variant, float_dtype
from rt3_tvm.codegen.exact import ExactWalk, Inexact
from rt3_tvm.codegen.verify import Failure, Proof
from rt3_tvm.errors import JobError
from rt3_tvm.trials import Difference, Trial, compare, cropped, padded_trial, reference

TRIALS = 2
"""Trials of a variant that are run kernel by kernel: all tokens real, and padded."""


def prove_int8(variant: Variant, built: Built, proof: Proof, explain: Callable[[Failure], str]) -> dict[str, Any]:
    """Run a variant whose level multiplies int8 and return what the bundle's metadata say of it.

    Raises
    ------
    JobError
        A call is not what integers give, or what is between the calls is further from PyTorch than float is.
    """
    level, length = variant.plan.level, variant.plan.length
    proof.checkpoint.mask(proof.model, level)
    calls, worst, error = 0, 0.0, 0.0
    for trial in proof.trials[length][:TRIALS]:
        walk = built.walk(variant)
        assert isinstance(walk, ExactWalk)
        try:
            found = _difference(variant, walk, proof, trial)
        except Inexact as wrong:
            where = f"level {level}, length {length}: {wrong} ({trial.name}, {trial.shape})"
            raise JobError(f"the compiled model is wrong: {where}") from wrong
        if not found.tolerated:
            failure = Failure(level, length, trial, found)
            raise JobError(f"the compiled model is wrong: {failure}; {explain(failure)}")
        calls, worst, error = calls + walk.calls, max(worst, walk.worst), max(error, found.error)
    rounded = {"exact_calls": calls, "exact_error": float(f"{worst:.3g}"), "float_error": float(f"{error:.3g}")}
    return {"level": level, "length": length} | rounded


def _difference(variant: Variant, walk: ExactWalk, proof: Proof, trial: Trial) -> Difference:
    imported = variant.imported
    padded = padded_trial(imported.inputs, trial, imported.batch, imported.length)
    for _ in walk.run(imported.inputs, padded.inputs):
        pass
    got = cropped(imported.outputs, walk.walk.outputs(imported.outputs, imported.batch, imported.length), trial)
    want = reference(proof.model, trial)
    return compare(proof.model, imported.outputs, trial, got, want, float_dtype(variant))
