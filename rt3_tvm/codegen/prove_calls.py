"""Variants of int8 prove themselves: calls against NumPy, and what is between them against PyTorch as float is."""

from collections.abc import Callable
from typing import Any

from rt3_tvm.codegen.differing import Built, Variant, float_dtype
from rt3_tvm.codegen.exact import ExactWalk, Inexact, TooCoarse
from rt3_tvm.codegen.verify import Failure, Proof
from rt3_tvm.errors import JobError
from rt3_tvm.trials import Difference, Trial, compare, cropped, padded_trial, reference

TRIALS = 2
"""Trials of a variant that are run kernel by kernel: all tokens real, and padded."""


COARSE = "leave it out by `keep_float` attention, or choose another `dtype`"
"""What can be done where float16 does not bear the scores of a model."""


def prove_calls(variant: Variant, built: Built, proof: Proof, explain: Callable[[Failure], str]) -> dict[str, Any]:
    """Run a variant that has calls to check and return what the bundle's metadata say of it.

    Raises
    ------
    JobError
        A call is not what NumPy gives, float16 is too coarse for it, or what is between the calls is further from PyTorch than
        float is.
    """
    level, length = variant.plan.level, variant.plan.length
    proof.checkpoint.mask(proof.model, level)
    walks, error = [], 0.0
    for trial in proof.trials[length][:TRIALS]:
        walk = built.walk(variant)
        assert isinstance(walk, ExactWalk)
        try:
            found = _difference(variant, walk, proof, trial)
        except Inexact as wrong:
            where = f"level {level}, length {length}: {wrong} ({trial.name}, {trial.shape})"
            if isinstance(wrong, TooCoarse):
                raise JobError(f"float16 is too coarse for attention of this model: {where}; {COARSE}") from wrong
            raise JobError(f"the compiled model is wrong: {where}") from wrong
        if not found.tolerated:
            failure = Failure(level, length, trial, found)
            raise JobError(f"the compiled model is wrong: {failure}; {explain(failure)}")
        walks.append(walk)
        error = max(error, found.error)
    facts: dict[str, Any] = {"level": level, "length": length, "float_error": _short(error)}
    if exact := sum(walk.calls for walk in walks):
        facts |= {"exact_calls": exact, "exact_error": _short(max(walk.worst for walk in walks))}
    if rounded := sum(walk.rounded for walk in walks):
        facts |= {"rounded_calls": rounded, "rounded_by": _short(max(walk.farthest for walk in walks))}
    return facts


def _short(number: float) -> float:
    return float(f"{number:.3g}")


def _difference(variant: Variant, walk: ExactWalk, proof: Proof, trial: Trial) -> Difference:
    imported = variant.imported
    padded = padded_trial(imported.inputs, trial, imported.batch, imported.length)
    for _ in walk.run(imported.inputs, padded.inputs):
        pass
    got = cropped(imported.outputs, walk.walk.outputs(imported.outputs, imported.batch, imported.length), trial)
    want = reference(proof.model, trial)
    return compare(proof.model, imported.outputs, trial, got, want, float_dtype(variant))
