"""``pattern_linear`` and ``dense_linear``: Y = act(W X + b) on feature-major activations.

Activations are tiled feature-major, (token tiles, features, token tile): one cache line holds one feature of 16 tokens,
so a kept weight is a scalar broadcast times contiguous vectors whatever the pattern. At compile time every group of V
rows gets the list of its kept columns (block pruning, pattern and assignment resolved into one offset table), each list
equally long, cut into ``column_blocks`` parts so that the part of X in use stays in L1. A group's V rows are worked on in
register blocks of ``rows`` rows that share the table.

Element types narrower than float32 are summed in their own type within a column block, which is short enough for that
(``LONGEST_SUM``), and in float32 over column blocks: Y, bias and activation are float32 always, in the real layout.

The dense kernel is the same nest: one group of all rows that keeps every column. Its table is small, stays in L1, and costs
one scalar load per register block and column.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL
from rt3_tvm.schedules.linear_decisions import LinearDecisions, LinearPacking, LinearShape, largest_divisor
from rt3_tvm.schedules.loops import begin_before, loop_of, vectorise
from rt3_tvm.schedules.packing import OFFSET_UNIT
from rt3_tvm.schedules.tasks import share_loop
from rt3_tvm.schedules.vector_math import (
    ACTIVATIONS,
    ANY_UNIT,
    SHORT,
    TOGETHER,
    VectorUnit,
    activation_of,
    vector_activation_of,
)

DECISIONS_ATTR = "rt3.decisions"
"""PrimFunc attribute that holds the values of a decision, by name."""
PREFETCHED_ROWS = 2
"""Rows of a register block from which weights are fetched ahead: below, the loads themselves are what is scarce."""


@cache  # TVMScript is parsed anew on every call
def linear_algorithm(
    shape: LinearShape,
    packing: LinearPacking,
    decisions: LinearDecisions,
    lanes: int,
    activation: str,
    unit: VectorUnit = ANY_UNIT,
) -> tirx.PrimFunc:
    """Return the loop nest, blocked by the packing, not yet vectorised.

    Buffers: x (tiles * cols * token tile,), values (column_blocks, row_blocks, kept / column_blocks, rows),
    [offsets (column_blocks, rows / group, kept / column_blocks): column * 16], bias (row_blocks, rows),
    y (tokens / 16, rows, 16).
    ::

        for column block, token block, row block:
            acc[groups, rows, vectors * lanes] = bias, or Y of the column block before
            for k: acc += values[k] * X[offsets[k]]
            Y = acc, after the last column block act(acc)

    Where the sums are narrower than Y they begin with zero, and bias or Y are added behind them. An activation that is not short
    is a loop over what was stored: for all sums of a register block at once it would take more registers than there are.
    """
    short = activation in SHORT
    act = ACTIVATIONS[activation if short else "none"]
    layout, tile, dtype, real = shape.layout, shape.layout.token_tile, shape.layout.element.dtype, REAL.dtype
    narrow, y_tile, scale = layout.element is not REAL, FEATURE_MAJOR.token_tile, tile // OFFSET_UNIT
    y_shape, y_first = (
        FEATURE_MAJOR.shape(shape.buffer_tiles * tile // y_tile, shape.rows),
        shape.first * tile // y_tile,
    )
    tiles, cols, rows = shape.buffer_tiles, shape.cols, packing.rows
    blocks, gi = packing.column_blocks, decisions.groups
    tokens = decisions.vectors * lanes
    row_blocks, kept = shape.rows // rows, shape.kept // blocks
    token_blocks = shape.tokens // tokens
    share = shape.group // rows
    tables = shape.rows // shape.group
    x_size, tile_size = tiles * cols * tile, cols * tile
    offset_dtype, last = shape.offset_dtype, blocks - 1
    outer = row_blocks // gi
    unroll = packing.unroll
    fetch = rows >= PREFETCHED_ROWS

    # X of the next token block, a few lines with each row block, so that it is in L2 when its turn comes.
    block_cols = -(-cols // blocks)
    lines = block_cols * max(1, tokens // tile)
    prefetches = -(-lines // outer)

    def ahead(c: Any, b: Any, r: Any, p: Any) -> Any:
        """Return the offset in X of the p-th line that row block r fetches for the token block after b."""
        line = T.min(r * prefetches + p, lines - 1)
        following = T.floormod(b + 1, token_blocks)
        block = T.min(c + T.floordiv(b + 1, token_blocks), blocks - 1)
        col = T.min(block * block_cols + T.floormod(line, block_cols), cols - 1)
        return tile_of(following, T.floordiv(line, block_cols) * tile) * tile_size + col * tile

    def tile_of(block: Any, t: Any) -> Any:
        return T.floordiv(block * tokens + t, tile) + shape.first

    def lane_of(block: Any, t: Any) -> Any:
        return T.floormod(block * tokens + t, tile)

    def y_tile_of(block: Any, t: Any) -> Any:
        return T.floordiv(block * tokens + t, y_tile) + y_first

    def y_lane_of(block: Any, t: Any) -> Any:
        return T.floormod(block * tokens + t, y_tile)

    def y_at(b: Any, r: Any, row: Any, vector: Any, lane: Any) -> tuple[Any, Any, Any]:
        """Return where in Y a number of a register block lies."""
        t = vector * lanes + lane
        return y_tile_of(b, t), r * gi * rows + row, y_lane_of(b, t)

    def column(offset: Any) -> Any:
        """Return where a line begins in a tile of X."""
        return T.Cast("int32", offset) * scale if scale > 1 else T.Cast("int32", offset)

    def begin(c: Any, row_bias: Any, before: Any) -> Any:
        return layout.element.const(0.0) if narrow else T.Select(c == 0, row_bias, before)

    def total(c: Any, total: Any, row_bias: Any, before: Any) -> Any:
        return T.Cast(real, total) + T.Select(c == 0, row_bias, before) if narrow else total

    activate = _activate(activation, unit, (gi * rows, decisions.vectors, lanes), y_at)

    @T.prim_func(s_tir=True)
    def pattern_linear(x: T.handle, v: T.handle, o: T.handle, b: T.handle, y: T.handle):
        X = T.match_buffer(x, (x_size,), dtype)
        values = T.match_buffer(v, (blocks, row_blocks, kept, rows), dtype)
        offsets = T.match_buffer(o, (blocks, tables, kept), offset_dtype)
        bias = T.match_buffer(b, (row_blocks, rows), real)
        Y = T.match_buffer(y, y_shape, real)
        for cb, tb, rb in T.grid(blocks, token_blocks, outer):
            with T.sblock("tile"):
                vc = T.axis.opaque(blocks, cb)
                vb = T.axis.opaque(token_blocks, tb)
                vr = T.axis.opaque(outer, rb)
                T.reads(
                    X[0:x_size],
                    values[0:blocks, 0:row_blocks, 0:kept, 0:rows],
                    offsets[0:blocks, 0:tables, 0:kept],
                    bias[0:row_blocks, 0:rows],
                    Y[0 : y_shape[0], 0 : row_blocks * rows, 0:y_tile],
                )
                T.writes(Y[0 : y_shape[0], 0 : row_blocks * rows, 0:y_tile])
                acc = T.sblock_alloc_buffer((gi, rows, tokens), dtype)
                for p in T.unroll(prefetches):
                    T.evaluate(prefetch(T.address_of(X[ahead(vc, vb, vr, p)])))
                for k in range(kept // unroll):
                    with T.sblock("fetch"):
                        vf = T.axis.opaque(kept // unroll, k)
                        T.reads()
                        T.writes()
                        if fetch:
                            T.evaluate(prefetch(T.address_of(values[vc, (vr + 1) * gi, vf * unroll, 0])))
                        else:
                            T.evaluate(0)
                    for u, g, r, t in T.grid(unroll, gi, rows, tokens):
                        with T.sblock("multiply"):
                            vk = T.axis.reduce(kept, k * unroll + u)
                            vg, vv, vt = T.axis.remap("SSS", [g, r, t])
                            with T.init():
                                acc[vg, vv, vt] = begin(
                                    vc,
                                    bias[vr * gi + vg, vv],
                                    Y[y_tile_of(vb, vt), (vr * gi + vg) * rows + vv, y_lane_of(vb, vt)],
                                )
                            acc[vg, vv, vt] = (
                                acc[vg, vv, vt]
                                + values[vc, vr * gi + vg, vk, vv]
                                * X[
                                    tile_of(vb, vt) * tile_size
                                    + column(offsets[vc, T.floordiv(vr * gi + vg, share), vk])
                                    + lane_of(vb, vt)
                                ]
                            )
                if vc == last:
                    for g, r, t in T.grid(gi, rows, tokens):
                        with T.sblock("finish"):
                            vg, vv, vt = T.axis.remap("SSS", [g, r, t])
                            T.reads(
                                acc[vg, vv, vt]
                            )  # and, of narrow sums, what is written: a vector of Y is its own alone
                            T.writes(Y[y_tile_of(vb, vt), (vr * gi + vg) * rows + vv, y_lane_of(vb, vt)])
                            Y[y_tile_of(vb, vt), (vr * gi + vg) * rows + vv, y_lane_of(vb, vt)] = act(
                                total(
                                    vc,
                                    acc[vg, vv, vt],
                                    bias[vr * gi + vg, vv],
                                    Y[y_tile_of(vb, vt), (vr * gi + vg) * rows + vv, y_lane_of(vb, vt)],
                                )
                            )
                    if not short:
                        activate(Y, vb, vr)
                else:
                    for g, r, t in T.grid(gi, rows, tokens):
                        with T.sblock("store"):
                            vg, vv, vt = T.axis.remap("SSS", [g, r, t])
                            T.reads(
                                acc[vg, vv, vt]
                            )  # and, of narrow sums, what is written: a vector of Y is its own alone
                            T.writes(Y[y_tile_of(vb, vt), (vr * gi + vg) * rows + vv, y_lane_of(vb, vt)])
                            Y[y_tile_of(vb, vt), (vr * gi + vg) * rows + vv, y_lane_of(vb, vt)] = total(
                                vc,
                                acc[vg, vv, vt],
                                bias[vr * gi + vg, vv],
                                Y[y_tile_of(vb, vt), (vr * gi + vg) * rows + vv, y_lane_of(vb, vt)],
                            )

    return pattern_linear.with_attr(DECISIONS_ATTR, decisions.__dict__)


def _activate(activation: str, unit: VectorUnit, block: tuple[int, int, int], y_at: Callable) -> Callable:
    """Return the loop that applies an activation to a register block of Y: rows, vectors of each, and lanes.

    A few vectors at once: enough that they hide each other's latency, few enough that constants stay in registers.
    """
    rows, vectors, lanes = block
    act, of_vectors = activation_of(activation, unit), vector_activation_of(activation, unit, lanes)
    along = largest_divisor(vectors, TOGETHER)
    beside = largest_divisor(rows, TOGETHER // along)

    @T.inline
    def one(Y, vb, vr, row, vector):
        for t in T.vectorized(lanes):
            Y[y_at(vb, vr, row, vector, t)] = act(Y[y_at(vb, vr, row, vector, t)])

    def vector_at(*at: Any) -> tuple[Any, Any, Any]:
        tile, row, lane = y_at(*at, 0)
        return tile, row, tirx.Ramp(lane, 1, lanes)

    @T.inline
    def whole(Y, vb, vr, row, vector):
        Y[vector_at(vb, vr, row, vector)] = of_vectors(Y[vector_at(vb, vr, row, vector)])

    each = one if of_vectors is None else whole

    @T.inline
    def activate(Y, vb, vr):
        for w in T.unroll(vectors // along):
            for i in T.serial(rows // beside):
                for j in T.unroll(beside):
                    for k in T.unroll(along):
                        each(Y, vb, vr, i * beside + j, w * along + k)

    return activate


def prefetch(address: tirx.Expr) -> tirx.Expr:
    """Return a hint to read a line into L2 (llvm.prefetch: read, locality 2, data)."""
    return T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(2), T.int32(1))


def schedule_linear(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Return the scheduled kernel: vectors over tokens, accumulators in registers."""
    sch = Schedule(func)
    # A register block is groups x rows x vectors of tokens: a weight is loaded once for all vectors of its row, a vector of X
    # once for all rows of its group.
    for block in ("finish", "store", "multiply"):
        vectorise(sch, block, "t", lanes, registers=("g", "r"))
    # A cache line of weights an iteration: LLVM sees enough independent loads to move them ahead of the multiply-adds.
    sch.unroll(loop_of(sch, "multiply", "u"))
    begin_before(sch, "multiply", "k", registers=("g", "r", "t_0"))
    # Threads share row blocks, each with all tokens: they read the same X, and no two write to one line of Y.
    share_loop(sch, loop_of(sch, "tile", "rb"))
    return sch.mod["main"]
