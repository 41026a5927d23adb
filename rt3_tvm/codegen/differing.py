"""Where a wrong bundle goes wrong: the first stage, and of the kernels the first in order of execution, whose values differ."""

import ctypes
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import IRModule, relax

from rt3_tvm.codegen.exact import ROUNDED, ExactWalk, Inexact
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.plan import Step, VariantPlan
from rt3_tvm.codegen.trace import Seen, Trace, trace_variant, values_of
from rt3_tvm.codegen.walk import Walk, link_kernels
from rt3_tvm.codegen.weights import WEIGHTS_FILE, WeightStore
from rt3_tvm.export import ExportForm
from rt3_tvm.frontend import ImportedModel
from rt3_tvm.model import NUMBERS
from rt3_tvm.schedules.cpu import fuses_float16
from rt3_tvm.schedules.layout import FLOAT16, INT8
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.trials import TOLERANCES, Trial, compare, cropped, padded_trial, reference, relative_error


@dataclass(frozen=True, eq=False)
class Variant:
    """One level at one length as it was compiled: ``mod`` is the module after phase 2."""

    imported: ImportedModel
    mod: IRModule
    context: VariantContext
    plan: VariantPlan


@dataclass(frozen=True, eq=False)
class Built:
    """The kernels of a bundle for this machine: their table, their object and the weights, in a folder, and a C compiler.

    ``target``: what they were compiled for.
    """

    folder: Path
    kernels: str
    table: KernelTable
    compiler: list[str]
    store: WeightStore
    target: dict[str, Any]

    @cached_property
    def _library(self) -> ctypes.CDLL:
        return link_kernels(self.compiler, self.folder, self.kernels)

    def walk(self, variant: Variant) -> Walk | ExactWalk:
        """Return a walk over a variant, whose layers of int8 and attention in float16 are checked and go on from float32."""
        walk = Walk(self._library, self.table.kernels, variant.plan, self.folder / WEIGHTS_FILE)
        if not has_checked_calls(variant.plan, self.table):
            return walk
        return ExactWalk(walk, self.table, self.store, variant.context.cpu, fuses_float16(self.target))


def has_checked_calls(plan: VariantPlan, table: KernelTable) -> bool:
    """Return whether steps of a plan multiply int8, or are attention in float16."""
    return any(s.dtype == INT8.dtype or table.kernels[s.kernel].family == ROUNDED for s in plan.steps)


def first_difference(variant: Variant, built: Built, model: torch.nn.Module, trial: Trial) -> str:
    """Return where a trial goes wrong, in words; ``model`` has the weights of the variant's level."""
    imported = variant.imported
    padded = padded_trial(imported.inputs, trial, imported.batch, imported.length)
    want = reference(model, trial)

    def is_wrong(got: dict[str, np.ndarray]) -> bool:
        got = cropped(imported.outputs, got, trial)
        return not compare(model, imported.outputs, trial, got, want, float_dtype(variant)).tolerated

    if is_wrong(reference(model, padded)):
        return f"PyTorch itself gives other values when the input is padded to {imported.length} tokens"
    if is_wrong(reference(ExportForm(model), padded)):
        return "the form of the model that is exported differs already"
    trace = trace_variant(variant.mod, variant.context)
    try:
        values = values_of(trace.annotated, _arguments(variant, model, padded))
    except (tvm.error.InternalError, ValueError) as error:
        return f"the first kernel could not be found: TVM cannot run the imported model ({str(error).splitlines()[0]})"
    if is_wrong(_outputs(trace, imported, values)):
        return "what TVM imported differs already"
    return _first_kernel(variant, built, trace, values, padded)


def float_dtype(variant: Variant) -> str:
    """Return by which element type a variant is measured whose checked calls go on from float32."""
    return FLOAT16.dtype if any(step.dtype == FLOAT16.dtype for step in variant.plan.steps) else NUMBERS


def _arguments(variant: Variant, model: torch.nn.Module, padded: Trial) -> list[np.ndarray]:
    """Return what ``main`` takes: the inputs, then the weights of the level."""
    main = variant.mod["main"]
    count = int(main.attrs["num_input"])
    inputs = [padded.inputs[spec.name] for spec in variant.imported.inputs]
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    weights = [held[variant.imported.parameters[p.name]].detach().numpy() for p in main.params[count:]]
    return [*inputs, *weights]


def _outputs(trace: Trace, imported: ImportedModel, values: dict[relax.Var, np.ndarray]) -> dict[str, np.ndarray]:
    main = trace.annotated["main"]
    result = main.body.body
    value = relax.analysis.get_var2val(main).get(result, result)
    fields = value.fields if isinstance(value, relax.Tuple) else [result]
    return {spec.name: values[field] for spec, field in zip(imported.outputs, fields, strict=True)}


def _first_kernel(
    variant: Variant, built: Built, trace: Trace, values: dict[relax.Var, np.ndarray], padded: Trial
) -> str:
    """Run the steps one by one and return the first whose output is not the value that it stands for."""
    try:
        return _first_wrong(variant, built, trace, values, padded)
    except Inexact as wrong:
        return f"first to differ is {wrong}"


def _first_wrong(
    variant: Variant, built: Built, trace: Trace, values: dict[relax.Var, np.ndarray], padded: Trial
) -> str:
    walk, tolerance = built.walk(variant), TOLERANCES[float_dtype(variant)]
    steps = walk.run(variant.imported.inputs, padded.inputs)
    for number, (step, call) in enumerate(zip(steps, trace.calls, strict=True)):
        ty = call.var.ty
        types = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
        for i, (place, field) in enumerate(zip(step.args[-len(types) :], types, strict=True)):
            for seen in trace.seen.get((call.var, i), ()):
                error = _error(seen, seen.to_plain(walk.read(place, field)), values[seen.var], padded)
                if error > tolerance:
                    return f"first to differ is {_named(trace, built, step, seen, number)}, by {error:.2g} of its size"
    return "no kernel differs: their errors add up, or the runtime hands in or out something else"


def _error(seen: Seen, got: np.ndarray, want: np.ndarray, padded: Trial) -> float:
    """Return how far a value is from the reference where tokens are real."""
    if padded.real is not None and seen.tokens >= 0:
        shape = [n if d in (0, seen.tokens) else 1 for d, n in enumerate(want.shape)]
        real = np.broadcast_to(padded.real.reshape(shape), want.shape)
        got, want = got[real], want[real]
    return relative_error(got.astype(np.float64), want.astype(np.float64))


def _named(trace: Trace, built: Built, step: Step, seen: Seen, number: int) -> str:
    weight = f" of '{step.matrix}'" if step.matrix else ""
    return f"{trace.name_of(seen.var)}{weight} (kernel {built.table.kernels[step.kernel].symbol}, call {number})"
