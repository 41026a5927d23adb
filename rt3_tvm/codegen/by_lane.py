"""The last step of a kernel for cores that multiply by a lane of a vector, as ARM's do: whole vectors of weights, one base address.

TVM's own lowering loads each weight by itself, and adds the address of a tile to each offset in 32 bits before it is scaled.
LLVM then loads pairs of scalars, and computes what is the same for all columns anew for each. Here weights are loaded as the
vectors that they lie in, of which multiply-adds take a lane; and the address of a tile is a pointer outside of the loop, so that
a line of X is one addition away.
"""

from collections.abc import Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.expr import TensorLoad
from tvm.sym import Analyzer

from rt3_tvm.schedules import BY_LANE_ATTR


@tirx.transform.prim_func_pass(opt_level=0, name="LoadByLane")
class LoadByLane:
    """Rewrite the loads of kernels that ask for it by their attribute."""

    def transform_function(self, func: tirx.PrimFunc, _mod: Any, _ctx: tvm.transform.PassContext) -> tirx.PrimFunc:
        """Rewrite weights first, then addresses."""
        marks = func.attrs.get(BY_LANE_ATTR) if func.attrs else None
        if marks is None:
            return func
        body = weights_by_lane(func.body, str(marks["weights"]), int(marks["lanes"]))
        return func.with_body(lines_from_tile(body, str(marks["lines"]), str(marks["offsets"])))


def weights_by_lane(body: tirx.Stmt, name: str, lanes: int) -> tirx.Stmt:
    """Replace ``w[i]`` by lane ``i % lanes`` of the vector that it lies in, where the remainder is known."""
    analyzer = Analyzer()

    def broadcast(expr: tirx.Broadcast) -> tirx.Expr:
        weight = expr.value
        if not isinstance(weight, TensorLoad) or weight.source.name != name:
            return expr
        (index,) = weight.indices
        known = analyzer.modular_set(index)
        if int(known.coeff) % lanes:
            return expr
        lane = int(known.base) % lanes
        vector = tirx.BufferLoad(weight.source, [tirx.Ramp(analyzer.simplify(index - lane), 1, lanes)])
        return tirx.Broadcast(tirx.Shuffle([vector], [lane]), expr.lanes)

    return tvm_ffi.structural_map(body, (tirx.Broadcast, broadcast))


def lines_from_tile(body: tirx.Stmt, lines: str, offsets: str) -> tirx.Stmt:
    """Replace ``x[tile + offset + lane]`` inside of a loop by ``(x + tile)[offset + lane]``, the pointer outside of it."""

    def rebase(loop: tirx.For) -> tirx.Stmt:
        bases: list[tuple[tirx.Expr, tirx.Buffer]] = []
        outside: list[tirx.Stmt] = []

        def based(buffer: tirx.Buffer, tile: tirx.Expr) -> tirx.Buffer:
            for known, found in bases:
                if tvm_ffi.structural_equal(known, tile):
                    return found
            dtype = str(buffer.ty.dtype)
            pointer = tirx.Var(f"{lines}_tile", PointerType(PrimType(dtype), "global"))
            found = tirx.decl_buffer(buffer.ty.shape, dtype, f"{lines}_tile")
            outside.append(tirx.Bind(pointer, tirx.address_of(tirx.BufferLoad(buffer, [tile]))))
            outside.append(tirx.DeclBuffer(found, data=pointer))
            bases.append((tile, found))
            return found

        def load(expr: TensorLoad) -> tirx.Expr:
            (index,) = expr.indices
            if expr.source.name != lines or not isinstance(index, tirx.Ramp):
                return expr
            tile, offset, lane = _split(index.base, offsets)
            if tile is None or offset is None:
                return expr
            wide = offset.astype("int64") + tirx.const(lane, "int64") if lane else offset.astype("int64")
            return tirx.BufferLoad(based(expr.source, tile), [tirx.Ramp(wide, 1, index.lanes)])

        inner = tvm_ffi.structural_map(loop.body, (TensorLoad, load))
        if not outside:
            return loop
        return tirx.SeqStmt([*outside, tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, inner)])

    return tvm_ffi.structural_map(body, (tirx.For, rebase))


def _split(index: tirx.Expr, offsets: str) -> tuple[tirx.Expr | None, tirx.Expr | None, int]:
    """Return a sum in three: what is the same for all columns, the offset of a column as it was loaded, and a constant."""
    tile, offset, lane = None, None, 0
    for term in _terms(index):
        if isinstance(term, tirx.IntImm):
            lane += int(term.value)
        elif isinstance(term, tirx.Cast) and isinstance(term.value, TensorLoad) and term.value.source.name == offsets:
            offset = term.value
        else:
            tile = term if tile is None else tile + term
    return tile, offset, lane


def _terms(expr: tirx.Expr) -> Iterator[tirx.Expr]:
    if isinstance(expr, tirx.Add):
        yield from _terms(expr.a)
        yield from _terms(expr.b)
    else:
        yield expr
