"""Which value of the imported model each kernel of a variant writes, and in which layout."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GlobalVar

from rt3_tvm.schedules.layout import FEATURE_MAJOR
from rt3_tvm.transform.composites import static_shape
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.layouts import Layouts, token_shape
from rt3_tvm.transform.legalize import ALIASES
from rt3_tvm.transform.pipeline import level_phases, run_phases
from rt3_tvm.transform.recognise_idioms import HEADS_FIRST
from rt3_tvm.transform.to_feature_major import lower_and_trace

Slot = tuple[relax.Var, int]
"""A kernel call by its variable, and which of its outputs."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A value of the imported model, and how a kernel's output becomes it; ``tokens``: its axis of tokens, -1 for none.

    Where that is the first axis, it counts the tokens of the whole batch.
    """

    var: relax.Var
    to_plain: Callable[[np.ndarray], np.ndarray]
    tokens: int


@dataclass(frozen=True, eq=False)
class Trace:
    """A variant before and after it was lowered.

    ``annotated`` is the module after phase 3, ``scheduled`` the last one; ``seen`` says what the outputs of its kernels are.
    """

    annotated: IRModule
    scheduled: IRModule
    seen: dict[Slot, list[Seen]]

    @property
    def calls(self) -> list[relax.VarBinding]:
        """The kernel calls, in order of execution: the steps of the plan."""
        return [b for b in bindings_of(self.scheduled) if is_kernel_call(b.value)]

    def name_of(self, var: relax.Var) -> str:
        """Return the composite or the operator that makes a value of the imported model."""
        values = relax.analysis.get_var2val(self.annotated["main"])
        value = values[var]
        while isinstance(value, relax.TupleGetItem | relax.Var):
            value = values[value.tuple_value if isinstance(value, relax.TupleGetItem) else value]
        if not isinstance(value, relax.Call):
            return type(value).__name__
        if isinstance(value.op, GlobalVar):
            return str(self.annotated[value.op].attrs["Composite"])
        return str(value.op.name)


def bindings_of(mod: IRModule) -> list[relax.VarBinding]:
    """Return the bindings of ``main``."""
    return [binding for block in mod["main"].body.blocks for binding in block.bindings]


def is_kernel_call(value: relax.Expr) -> bool:
    """Return whether an expression calls a kernel."""
    return isinstance(value, relax.Call) and value.op.name in ("relax.call_tir", "relax.call_tir_inplace")


def trace_variant(mod: IRModule, context: VariantContext) -> Trace:
    """Lower a module of phase 2 as the compiler does, and follow its values."""
    (annotate, _, *rest) = level_phases(context)
    annotated = run_phases(mod, [annotate])
    lowered, layouts = lower_and_trace(annotated, context)
    scheduled = run_phases(lowered, rest)
    slots = _slots(lowered, scheduled)
    seen: dict[Slot, list[Seen]] = {}
    for new, value in _seen(annotated, layouts, context):
        if new in slots:
            seen.setdefault(slots[new], []).append(value)
    return Trace(annotated, scheduled, seen)


def _slots(lowered: IRModule, scheduled: IRModule) -> dict[relax.Var, Slot]:
    """Return the kernel output that holds each variable of a lowered module.

    Legalisation keeps the variables; fusion gives a fused group a new one, which is known by who takes it as an argument.
    """
    calls = {b.var: b.value for b in bindings_of(scheduled) if is_kernel_call(b.value)}
    slots: dict[relax.Var, Slot] = {}
    for binding in bindings_of(scheduled):
        var, value = binding.var, binding.value
        if var in calls:
            slots[var] = (var, 0)
        elif isinstance(value, relax.TupleGetItem):
            slots[var] = (value.tuple_value, value.index)
        elif isinstance(value, relax.Call) and value.op.name in ALIASES and value.args[0] in slots:
            slots[var] = slots[value.args[0]]
        elif isinstance(value, relax.Var) and value in slots:
            slots[var] = slots[value]
    for binding in bindings_of(lowered):
        after = calls.get(binding.var)
        if after is not None and is_kernel_call(binding.value):
            pairs = zip(binding.value.args[1].fields, after.args[1].fields, strict=True)
            slots.update((old, slots[new]) for old, new in pairs if old not in slots and new in slots)
    return slots


def _seen(annotated: IRModule, layouts: Layouts, context: VariantContext) -> Iterator[tuple[relax.Var, Seen]]:
    """Yield the variables of the lowered module that hold values of the annotated one."""
    for binding in bindings_of(annotated):
        var = binding.var
        if not isinstance(var.ty, relax.TensorType):
            continue
        shape = static_shape(var)
        axis = _token_axis(shape, context)
        if var in layouts.plain:
            yield layouts.plain[var], Seen(var, _reshaped(shape), axis)
        if var in layouts.feature_major:
            yield layouts.feature_major[var], Seen(var, _untiled(var, shape), axis)
        if var in layouts.heads_first:
            yield layouts.heads_first[var], Seen(var, _heads_first(shape), 2)


def _token_axis(shape: tuple[int, ...], context: VariantContext) -> int:
    """Return the axis along which a tensor has a row for each token; -1 where it has none."""
    if len(shape) == 2 and shape[0] == context.batch * context.length:
        return 0
    inner = (axis for axis in (1, 2) if axis < len(shape) - 1 and shape[axis] == context.length)
    return next(inner, -1) if shape and shape[0] == context.batch else -1


def _reshaped(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: value.reshape(shape)


def _untiled(var: relax.Var, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    tokens = token_shape(var)
    return lambda value: tokens.layout.unpack(value, tokens.batch, tokens.length).reshape(shape)


def _heads_first(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    batch, heads, length, dim = shape

    def to_plain(value: np.ndarray) -> np.ndarray:
        return FEATURE_MAJOR.unpack(value, batch, length).reshape(batch, length, heads, dim).transpose(HEADS_FIRST)

    return to_plain


def values_of(mod: IRModule, arguments: list[np.ndarray]) -> dict[relax.Var, np.ndarray]:
    """Return the tensors that ``main`` computes, by TVM's own kernels for its operators.

    Slow, and independent of ours: neither our layouts nor our legalisation nor our schedules have a part in it.
    """
    main, bindings = mod["main"], bindings_of(mod)
    wanted = [b.var for b in bindings if isinstance(b.var.ty, relax.TensorType)]
    every = relax.Var("every", relax.TupleType([v.ty for v in wanted]))
    block = relax.DataflowBlock([*bindings, relax.VarBinding(every, relax.Tuple(wanted))])
    whole = relax.Function(main.params, relax.SeqExpr([block], every), every.ty).with_attr("global_symbol", "main")
    functions = {var: _without_marks(func) for var, func in mod.functions_items() if var.name_hint != "main"}
    module = IRModule({**functions, GlobalVar("main"): whole})
    machine = relax.VirtualMachine(tvm.compile(module, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    results = machine["main"](*(tvm.runtime.tensor(a) for a in arguments))
    return {var: result.numpy() for var, result in zip(wanted, results, strict=True)}


def _without_marks(func: relax.Function) -> relax.Function:
    """Return a composite as a function like any other, which TVM compiles by itself."""
    for name in ("Composite", "Primitive"):
        func = func.without_attr(name)
    return func
