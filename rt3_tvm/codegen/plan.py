"""From ``main`` in Relax to a list of kernel calls, every intermediate at a fixed offset of one workspace."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tvm import IRModule, relax
from tvm.ir import GlobalVar
from tvm.ir.expr import GenericConst

from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.weights import WeightStore
from rt3_tvm.errors import JobError
from rt3_tvm.schedules import FLOPS_ATTR, KERNEL_ATTR, SCHEDULES
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.transform.context import UNPRUNED, WeightRef, references_of
from rt3_tvm.transform.legalize import ALIASES

ALIGNMENT = 64


Segment = Literal["workspace", "weights"]
"""What a pointer argument can point into; the C runtime has a base address for each."""


@dataclass(frozen=True)
class Place:
    """Where a pointer argument points: an offset in a segment."""

    segment: Segment
    offset: int


@dataclass(frozen=True)
class Step:
    """One call of a kernel; ``weight``: of a linear layer.

    ``flops`` counts what the kernel computes on tokens, padded ones included, and on kept weights only; ``bytes`` every
    argument once.
    """

    kernel: int
    args: tuple[Place, ...]
    weight: WeightRef | None = None
    flops: int = 0
    bytes: int = 0

    @property
    def matrix(self) -> str:
        """Name of the weight of a linear layer."""
        return self.weight.weight if self.weight else ""

    @property
    def dtype(self) -> str:
        """What a linear layer multiplies."""
        return self.weight.element if self.weight else REAL.dtype


@dataclass(frozen=True)
class VariantPlan:
    """The code of one variant."""

    level: int
    length: int
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    workspace_bytes: int


@dataclass
class _Buffer:
    """A buffer and the steps between which it is in use."""

    size: int
    first: int
    last: int
    offset: int = -1


@dataclass
class _Value:
    """What a Relax variable stands for: a buffer, or an array of the store by its number."""

    buffer: _Buffer | None = None
    weight: int | None = None


@dataclass(frozen=True, eq=False)
class _Call:
    """A step whose arguments have no places yet."""

    kernel: int
    args: list[_Value]
    weight: WeightRef | None
    flops: int
    bytes: int


@dataclass(frozen=True, eq=False)
class VariantDraft:
    """A variant before its weights have places: which of them levels share is known once all variants are planned."""

    level: int
    length: int
    calls: list[_Call]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    workspace_bytes: int

    def placed(self, offsets: Sequence[int]) -> VariantPlan:
        """Return the plan; ``offsets``: of the store's arrays, by number."""
        steps = tuple(
            Step(c.kernel, tuple(_place(v, offsets) for v in c.args), c.weight, c.flops, c.bytes) for c in self.calls
        )
        return VariantPlan(self.level, self.length, steps, self.inputs, self.outputs, self.workspace_bytes)


@dataclass
class _Planner:
    mod: IRModule
    references: dict[relax.Var, WeightRef]
    kernels: KernelTable
    store: WeightStore
    buffers: list[_Buffer] = field(default_factory=list)
    values: dict[relax.Var, list[_Value]] = field(default_factory=dict)
    calls: list[_Call] = field(default_factory=list)

    def buffer(self, ty: relax.TensorType, step: int) -> _Value:
        """Return a new buffer that is first used at ``step``."""
        made = _Buffer(-(-max(_bytes(ty), 1) // ALIGNMENT) * ALIGNMENT, step, step)
        self.buffers.append(made)
        return _Value(buffer=made)

    def value(self, expr: relax.Expr, step: int) -> _Value:
        """Return where an argument lies, and keep it alive until ``step``."""
        if isinstance(expr, GenericConst):
            return _Value(weight=self.store.add(np.asarray(expr.value.numpy()), UNPRUNED))
        (found,) = self.values[expr]
        if found.buffer is not None:
            found.buffer.last = max(found.buffer.last, step)
        return found

    def visit(self, var: relax.Var, value: relax.Expr) -> None:
        """Plan one binding."""
        step = len(self.calls)
        if isinstance(value, relax.Call) and value.op.name in ("relax.call_tir", "relax.call_tir_inplace"):
            self._call(var, value, step)
        elif isinstance(value, relax.Call) and value.op.name in ALIASES:
            self.values[var] = [self.value(value.args[0], step)]
        elif isinstance(value, relax.TupleGetItem):
            self.values[var] = [self.values[value.tuple_value][value.index]]
        elif isinstance(value, relax.Var):
            self.values[var] = self.values[value]
        elif not isinstance(value, relax.Tuple):
            raise JobError(f"no code for {value.op.name if isinstance(value, relax.Call) else type(value).__name__}")

    def _call(self, var: relax.Var, call: relax.Call, step: int) -> None:
        target, operands = call.args[0], call.args[1]
        assert isinstance(target, GlobalVar)
        arguments = [self.value(a, step) for a in operands.fields]
        ty = call.ty_args[0]
        types = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
        in_place = call.op.name == "relax.call_tir_inplace"  # then the last argument is the output
        outputs = [] if in_place else [self.buffer(t, step) for t in types]
        self.values[var] = [arguments[-1]] if in_place else outputs
        refs = [self.references.get(a) for a in operands.fields if isinstance(a, relax.Var)]
        weight = next((r for r in refs if r and r.kind == "values"), None)
        func = self.mod[target]
        flops = int(func.attrs.get(FLOPS_ATTR, 0))
        size = SCHEDULES[str(func.attrs[KERNEL_ATTR])].bytes(func)
        self.calls.append(_Call(self.kernels.index(func), [*arguments, *outputs], weight, flops, size))


def _bytes(ty: relax.TensorType) -> int:
    return int(np.prod([int(d) for d in ty.shape], dtype=np.int64)) * np.dtype(str(ty.dtype)).itemsize


def _place_buffers(buffers: list[_Buffer]) -> int:
    """Give each buffer the lowest offset at which nothing else lives while it does, the largest first."""
    placed: list[_Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        others = sorted(
            (p for p in placed if p.first <= buffer.last and buffer.first <= p.last), key=lambda p: p.offset
        )
        offset = 0
        for other in others:
            if offset + buffer.size <= other.offset:
                break
            offset = max(offset, other.offset + other.size)
        buffer.offset = offset
        placed.append(buffer)
    return max((b.offset + b.size for b in placed), default=0)


def plan_variant(mod: IRModule, level: int, length: int, kernels: KernelTable, store: WeightStore) -> VariantDraft:
    """Plan one variant; kernels and weights are added to their tables.

    The scheduled module says all that is asked: also one that was dumped, and read back, can be planned.
    """
    main = mod["main"]
    count = int(main.attrs["num_input"])
    references = dict(zip(main.params[count:], references_of(main.attrs), strict=True))
    planner = _Planner(mod, references, kernels, store)
    for param in main.params[:count]:
        planner.values[param] = [planner.buffer(param.ty, 0)]
    inputs = [planner.values[p][0].buffer for p in main.params[:count]]
    for param, ref in references.items():
        planner.values[param] = [_Value(weight=store.resolve(ref))]
    result = main.body.body
    fields: list[relax.Expr] = [result]
    for block in main.body.blocks:
        for binding in block.bindings:
            planner.visit(binding.var, binding.value)
            if binding.var.same_as(result) and isinstance(binding.value, relax.Tuple):
                fields = list(binding.value.fields)
    end = len(planner.calls)
    outputs = [planner.value(f, end).buffer for f in fields]
    size = _place_buffers(planner.buffers)
    return VariantDraft(level, length, planner.calls, _offsets(inputs), _offsets(outputs), size)


def _place(value: _Value, offsets: Sequence[int]) -> Place:
    if value.weight is not None:
        return Place("weights", offsets[value.weight])
    assert value.buffer is not None
    return Place("workspace", value.buffer.offset)


def _offsets(buffers: list[_Buffer | None]) -> tuple[int, ...]:
    return tuple(b.offset for b in buffers if b is not None)
