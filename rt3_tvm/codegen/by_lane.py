"""The last step of a kernel for cores that multiply by a lane of a vector, as ARM's do: vectors of weights, one base address.

TVM's own lowering loads each weight by itself, and adds the address of a tile to each offset in 32 bits before it is scaled.
LLVM then loads pairs of scalars, and computes what is the same for all columns anew for each. Here weights are loaded as the
vectors that they lie in, of which multiply-adds take a lane; and the address of a tile is a pointer outside of the loop, so that
a line of X is one addition away.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.expr import TensorLoad
from tvm.sym import Analyzer

from rt3_tvm.schedules import BY_LANE_ATTR
from rt3_tvm.schedules.layout import REAL

WORTH_HOLDING = 3
"""Constants of a loop from which on they are worth a vector that holds them."""


@tirx.transform.prim_func_pass(opt_level=0, name="LoadByLane")
class LoadByLane:
    """Rewrite the loads of kernels that ask for it by their attribute."""

    def transform_function(self, func: tirx.PrimFunc, _mod: Any, _ctx: tvm.transform.PassContext) -> tirx.PrimFunc:
        """Rewrite weights, maxima and constants, where a core multiplies by lane, then addresses."""
        marks = func.attrs.get(BY_LANE_ATTR) if func.attrs else None
        if marks is None:
            return func
        body, lanes = func.body, int(marks["lanes"])
        if lanes:
            body = weights_by_lane(body, [str(n) for n in marks["weights"]], lanes)
            body = held_constants(largest_in_one(body), lanes, bool(marks.get("few", False)))
        body = from_pointers(body, [str(n) for n in marks["pointers"]], int(marks["line"]))
        return func.with_body(counted(body) if marks.get("counted", False) else body)


def weights_by_lane(body: tirx.Stmt, names: Collection[str], lanes: int) -> tirx.Stmt:
    """Replace ``w[i]`` by lane ``i % lanes`` of the vector that it lies in, where the remainder is known."""
    analyzer = Analyzer()

    def broadcast(expr: tirx.Broadcast) -> tirx.Expr:
        weight = expr.value
        if not isinstance(weight, TensorLoad) or weight.source.name not in names:
            return expr
        (index,) = weight.indices
        known = analyzer.modular_set(index)
        if int(known.coeff) % lanes:
            return expr
        lane = int(known.base) % lanes
        vector = tirx.BufferLoad(weight.source, [tirx.Ramp(analyzer.simplify(index - lane), 1, lanes)])
        return tirx.Broadcast(tirx.Shuffle([vector], [lane]), expr.lanes)

    return tvm_ffi.structural_map(body, (tirx.Broadcast, broadcast))


def largest_in_one(body: tirx.Stmt) -> tirx.Stmt:
    """Make each maximum and minimum of vectors one instruction: TVM's are a comparison and a choice, for what is no number."""

    def one(expr: tirx.Max | tirx.Min) -> tirx.Expr:
        dtype, name = str(expr.ty.dtype), "llvm.maximum" if isinstance(expr, tirx.Max) else "llvm.minimum"
        return tirx.call_llvm_pure_intrin(dtype, name, expr.a, expr.b) if dtype.startswith(f"{REAL.dtype}x") else expr

    return tvm_ffi.structural_map(body, [(tirx.Max, one), (tirx.Min, one)])


def held_constants(body: tirx.Stmt, lanes: int, few: bool) -> tirx.Stmt:
    """Keep the constants of innermost loops in registers: LLVM makes them anew in each iteration, three instructions each.

    It does not know what a volatile load gives, and can but keep it. Powers of 2 it has to know: a conversion does such a
    product. Where a core has ``few`` registers it does not know the trip count either, by which it would unroll further.
    """

    def inside(loop: tirx.For) -> tirx.Stmt:
        if _contains(loop.body, tirx.For):
            return loop
        held: dict[float, int] = {}
        vector = tirx.Var("constants", PrimType(f"{REAL.dtype}x{lanes}"))

        def hold(expr: tirx.Broadcast) -> tirx.Expr:
            if not isinstance(expr.value, tirx.FloatImm) or str(expr.value.ty.dtype) != REAL.dtype:
                return expr
            value = float(expr.value.value)
            if _power_of_2(value) or (len(held) == lanes and value not in held):
                return expr
            return tirx.Broadcast(tirx.Shuffle([vector], [held.setdefault(value, len(held))]), expr.lanes)

        inner = tvm_ffi.structural_map(loop.body, (tirx.Broadcast, hold))
        if len(held) < WORTH_HOLDING:
            return loop
        before, vector_of = _volatile([REAL.const(value) for value in held], lanes)
        count, extent = loop.extent, tirx.Var("extent", "int32")
        if few:
            more, extent_of = _volatile([loop.extent], 1)
            before, count = [*before, *more, tirx.Bind(extent, extent_of)], extent
        here = tirx.For(loop.loop_var, loop.min, count, loop.kind, inner, annotations=loop.annotations)
        return tirx.SeqStmt([*before, tirx.Bind(vector, vector_of), here])

    return tvm_ffi.structural_map(body, (tirx.For, inside))


def counted(body: tirx.Stmt) -> tirx.Stmt:
    """Hide from LLVM how often innermost loops run.

    Short ones it would unroll to the end, and load so far ahead that what is loaded has to be stored on the stack.
    """

    def count(loop: tirx.For) -> tirx.Stmt:
        if _contains(loop.body, tirx.For):
            return loop
        before, extent_of = _volatile([loop.extent], 1)
        extent = tirx.Var("extent", "int32")
        rest = tirx.For(loop.loop_var, loop.min, extent, loop.kind, loop.body, annotations=loop.annotations)
        return tirx.SeqStmt([*before, tirx.Bind(extent, extent_of), rest])

    return tvm_ffi.structural_map(body, (tirx.For, count))


def _power_of_2(value: float) -> bool:
    return math.frexp(abs(value))[0] in (0.0, 0.5)


def _volatile(values: list[tirx.Expr], lanes: int) -> tuple[list[tirx.Stmt], tirx.Expr]:
    """Return the statements that write values, and the vector that they are read back as."""
    dtype = str(values[0].ty.dtype)
    buffer = tirx.decl_buffer((lanes,), dtype, "unknown")
    places = [tirx.const(lane, "int32") for lane in range(len(values))]
    stores = [tirx.BufferStore(buffer, value, [at]) for value, at in zip(values, places, strict=True)]
    index = tirx.Ramp(places[0], tirx.const(1, "int32"), lanes) if lanes > 1 else places[0]
    return [tirx.AllocBuffer(buffer, {"tirx.volatile": tirx.const(True, "bool")}), *stores], tirx.BufferLoad(
        buffer, [index]
    )


def from_pointers(body: tirx.Stmt, buffers: Collection[str], line: int) -> tirx.Stmt:
    """Replace ``x[a + b]`` inside of an innermost loop by ``(x + a)[b]``: the pointer to what stays the same is made outside.

    ``b`` is in 64 bits, as addresses are. What a constant exceeds ``line`` by belongs to ``a``: further than that two lines
    share no instruction that loads a pair. Only of buffers that nothing writes: TVM tells LLVM that loads and stores of two
    names never meet, and a pointer is another name.
    """
    written: list[tirx.Buffer] = []
    tvm_ffi.structural_walk(body, (tirx.BufferStore, lambda store: written.append(store.buffer)))
    stored = sorted({buffer.name for buffer in written} & set(buffers))
    assert not stored, f"{', '.join(stored)} is written, and may not be read by a pointer"

    def rebase(loop: tirx.For) -> tirx.Stmt:
        if _contains(loop.body, tirx.For):
            return loop
        pointers = _Pointers(loop.loop_var, line)

        def load(expr: TensorLoad) -> tirx.Expr:
            return pointers.load(expr) if expr.source.name in buffers else expr

        inner = tvm_ffi.structural_map(loop.body, (TensorLoad, load))
        if not pointers.outside:
            return loop
        rest = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, inner, annotations=loop.annotations)
        return tirx.SeqStmt([*pointers.outside, rest])

    return tvm_ffi.structural_map(body, (tirx.For, rebase))


class _Pointers:
    """The pointers of one loop, and the statements that make them."""

    def __init__(self, loop_var: tirx.Var, line: int) -> None:
        self.loop_var, self.line = loop_var, line
        self.outside: list[tirx.Stmt] = []
        self._known: list[tuple[tirx.Buffer, tirx.Expr, tirx.Buffer]] = []

    def load(self, expr: TensorLoad) -> tirx.Expr:
        """Return a load from a pointer, or the load as it is where nothing of its index stays the same."""
        (index,) = expr.indices
        start = index.base if isinstance(index, tirx.Ramp) else index
        fixed, moving, constant = self._split(start)
        if fixed is None or moving is None:
            return expr
        looked_up = _contains(moving, TensorLoad)
        far = constant - constant % self.line if looked_up else 0
        near, wide = constant - far, _wide(moving)
        wide = wide + tirx.const(near, "int64") if near else wide
        found = self._buffer(expr.source, fixed + far if far else fixed)
        return tirx.BufferLoad(found, [tirx.Ramp(wide, 1, index.lanes) if isinstance(index, tirx.Ramp) else wide])

    def _buffer(self, buffer: tirx.Buffer, start: tirx.Expr) -> tirx.Buffer:
        """Return the buffer that begins at an index of another."""
        for source, known, found in self._known:
            if source.same_as(buffer) and tvm_ffi.structural_equal(known, start):
                return found
        dtype, name = str(buffer.ty.dtype), f"{buffer.name}_here"
        pointer = tirx.Var(name, PointerType(PrimType(dtype), "global"))
        found = tirx.decl_buffer(buffer.ty.shape, dtype, name)
        address = tirx.address_of(tirx.BufferLoad(buffer, [start]))
        self.outside += [tirx.Bind(pointer, address), tirx.DeclBuffer(found, data=pointer)]
        self._known.append((buffer, start, found))
        return found

    def _split(self, index: tirx.Expr) -> tuple[tirx.Expr | None, tirx.Expr | None, int]:
        """Return a sum in three: what is the same in all iterations, what is not, and a constant."""
        fixed, moving, constant = None, None, 0
        for term in _terms(index):
            if isinstance(term, tirx.IntImm):
                constant += int(term.value)
            elif _contains(term, TensorLoad) or _uses(term, self.loop_var):
                moving = term if moving is None else moving + term
            else:
                fixed = term if fixed is None else fixed + term
        return fixed, moving, constant


def _terms(expr: tirx.Expr) -> Iterator[tirx.Expr]:
    if isinstance(expr, tirx.Add):
        yield from _terms(expr.a)
        yield from _terms(expr.b)
    else:
        yield expr


def _wide(expr: tirx.Expr) -> tirx.Expr:
    """Return an index in 64 bits, its factors too: what is widened behind a product is computed anew in each iteration."""
    if isinstance(expr, (tirx.Add, tirx.Mul)):
        return type(expr)(_wide(expr.a), _wide(expr.b))
    if isinstance(expr, tirx.Cast) and str(expr.value.ty.dtype).startswith("uint"):
        return expr.value.astype("int64")
    return expr.astype("int64")


def _contains(root: tirx.Expr | tirx.Stmt, kind: type) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(root, (kind, found.append))
    return bool(found)


def _uses(expr: tirx.Expr, var: tirx.Var) -> bool:
    found: list[bool] = []
    tvm_ffi.structural_walk(expr, (tirx.Var, lambda v: found.append(True) if v.same_as(var) else None))
    return bool(found)
