"""Linear layers in int8, sums in int32: Y = act((W X) * scales + b), dense, of any kept columns, and of quads.

The lists of kept columns are those of ``pattern_linear``. Four at a time are zipped (``int8_lines.py``), and what comes out
is multiplied by the weights of each row of a register block, four columns in an instruction. All columns are summed before a
register block is left: an int8 line of X is so short that they stay in L1. Where columns are kept in quads, X has them beside
each other, a list has an offset for each quad, and nothing is zipped.
"""

from functools import cache
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import pair_of, repeated
from rt3_tvm.schedules.int8_blocks import (
    Buffers,
    Int8Kernel,
    begin_lines,
    bring_quads,
    clear_rest,
    for_core,
    store,
    vector_of,
)
from rt3_tvm.schedules.int8_lines import COLUMNS, LANE_WORDS
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, REAL
from rt3_tvm.schedules.linear_decisions import largest_divisor
from rt3_tvm.schedules.tasks import TASKS_ATTR
from rt3_tvm.schedules.vector_math import ACTIVATIONS, ANY_UNIT, SHORT, TOGETHER, Activation, VectorUnit, activation_of


@cache  # TVMScript is parsed anew on every call
def int8_linear(k: Int8Kernel, unit: VectorUnit = ANY_UNIT) -> tirx.PrimFunc:
    """Return the kernel.

    Buffers: x (lines * cols * tokens of a line), token_scales (tiles, 16), values (row blocks, quads, rows), each four weights of
    a row, offsets (rows / group, columns or quads): column * 16, bias, scales and starts (row blocks, rows), y (tiles, rows, 16).
    ::

        for line, row block:
            for pass:
                acc[rows, vectors] = starts
                for four columns: acc += values * zip(X of the columns)
                Y = acc * scales * token scales + bias
                for Y of the pass: Y = act(Y)

    Where all rows keep the same columns, a line is zipped before its row blocks; quads are not zipped at all.
    """
    shape, rows, lines, tile = k.shape, k.packing.rows, k.lines, FEATURE_MAJOR.token_tile
    row_blocks, tables, quads = shape.rows // rows, shape.rows // shape.group, shape.kept // COLUMNS
    tiles, share, real = shape.buffer_tiles, shape.group // rows, REAL.dtype
    x_size = lines.count(tiles) * shape.cols * lines.tokens
    blocks = lines.count(shape.tiles) // k.block_lines
    first_line = shape.first // lines.tiles
    at_once = (quads, len(k.block)) if k.zips_once else (k.dot.quads, k.decisions.vectors)
    zipped_shape = *at_once, lines.tokens

    @T.prim_func(s_tir=True)
    def int8_linear(
        x: T.handle, t: T.handle, v: T.handle, o: T.handle, b: T.handle, c: T.handle, d: T.handle, y: T.handle
    ) -> None:
        X = T.match_buffer(x, (x_size,), INT8.dtype)
        token_scales = T.match_buffer(t, (tiles, tile), real)
        values = T.match_buffer(v, (row_blocks, quads, rows), "int32")
        offsets = T.match_buffer(o, (tables, k.listed), shape.offset_dtype)
        bias = T.match_buffer(b, (row_blocks, rows), real)
        scales = T.match_buffer(c, (row_blocks, rows), real)
        starts = T.match_buffer(d, (row_blocks, rows), "int32")
        Y = T.match_buffer(y, FEATURE_MAJOR.shape(tiles, shape.rows), real)
        loaded = T.sblock_alloc_buffer((COLUMNS, lines.tokens), INT8.dtype)
        zipped = T.sblock_alloc_buffer(zipped_shape, INT8.dtype)
        acc = T.sblock_alloc_buffer((rows, k.decisions.vectors * lines.lanes), "int32")
        for lb in range(blocks):
            begin_lines(
                k, Buffers(X, values, offsets, starts, loaded, zipped, acc), lb * k.block_lines + first_line, k.dot.zip
            )
            for rb in T.serial(row_blocks, annotations={TASKS_ATTR: 1}):
                _register_blocks(
                    k,
                    Buffers(X, values, offsets, starts, loaded, zipped, acc),
                    (lb * k.block_lines + first_line, rb, T.floordiv(rb, share)),
                    lambda vectors, line: _finish((k, unit), (Y, acc, token_scales, scales, bias), (line, rb), vectors),
                )
                clear_rest(k, Y, lb * k.block_lines + first_line, rb)

    return int8_linear


def int8_kernel(k: Int8Kernel, cpu: CpuShape) -> tirx.PrimFunc:
    """Return the kernel for a core."""
    return for_core(int8_linear(k, cpu.unit), k, cpu)


def _register_blocks(k: Int8Kernel, b: Buffers, at: tuple[Any, Any, Any], finish: Any) -> None:
    """Emit the passes over a line: ``at`` is the line, the row block and its table."""
    line, row_block, _ = at
    lanes, unroll = k.lines.lanes, k.packing.unroll
    whole = k.sums // unroll * unroll
    for vectors in k.passes:
        for r in range(k.packing.rows):
            for v in range(len(vectors)):
                start = b.starts[row_block, r] if k.dot.unsigned else T.int32(0)
                store(b.acc, tirx.Broadcast(start, lanes), r, v * lanes)
        if whole:
            with T.serial(whole // unroll) as i:
                for u in range(unroll):
                    _add(k, b, at, i * unroll + u, vectors)
        for rest in range(whole, k.sums):
            _add(k, b, at, rest, vectors)
        finish(vectors, line)


def _add(k: Int8Kernel, b: Buffers, at: tuple[Any, Any, Any], i: Any, vectors: list[tuple[int, int]]) -> None:
    """Emit the dot products of one sum of int32 of all that a register block has, and the zips that they want."""
    (line, row_block, table), dot, lanes, width = at, k.dot, k.lines.lanes, k.lines.tokens
    quads, piece = [i * dot.quads + q for q in range(dot.quads)], width // 2 if dot.pairs else width
    if not k.zips_once:
        for q, four in enumerate(quads):
            bring_quads(k, b, (line, table, four), vectors, q, dot.zip)
    for r in range(k.packing.rows):
        weights = _weights(k, b, (row_block, i), r)
        for v, vector in enumerate(vectors):
            places = [(q, k.block.index(vector)) for q in quads] if k.zips_once else [(q, v) for q in range(dot.quads)]
            x = [vector_of(b.quads, *at, first, lanes=piece) for at in places for first in range(0, width, piece)]
            store(b.acc, dot.accumulate(vector_of(b.acc, r, v * lanes, lanes=lanes), x, weights), r, v * lanes)


def _weights(k: Int8Kernel, b: Buffers, at: tuple[Any, Any], row: int) -> list[tirx.Expr]:
    """Return the weights of a row for one sum of int32, as its instruction wants them: ``at`` is the row block and which sum."""
    (row_block, i), dot, rows = at, k.dot, k.packing.rows
    if not dot.pairs:
        return [repeated(b.values[row_block, i * dot.quads + q, row], k.lines.tokens) for q in range(dot.quads)]
    found, lanes = [], gcd(LANE_WORDS, dot.quads * rows)
    for word in (q * rows + row for q in range(dot.quads)):  # of the row block's, which lie behind one another
        first = word // lanes * lanes
        words = vector_of(b.values, row_block, i * dot.quads, first, lanes=lanes)
        found += [pair_of(words, 2 * (word - first) + which) for which in (0, 1)]
    return found


def _finish(
    of: tuple[Int8Kernel, VectorUnit], buffers: tuple[tirx.Buffer, ...], at: tuple[Any, Any], vectors: Any
) -> None:
    """Emit what becomes of the sums of a pass: scales, bias, and an activation where it is short."""
    (k, unit), (y, acc, token_scales, scales, bias), (line, row_block) = of, buffers, at
    lanes, tile, rows, short = k.lines.lanes, FEATURE_MAJOR.token_tile, k.packing.rows, k.activation in SHORT
    act = ACTIVATIONS[k.activation if short else "none"]
    for r in range(rows):
        for v, (part_line, part) in enumerate(vectors):
            first = (line + part_line) * k.lines.tokens + part * lanes
            at_tile, token = T.floordiv(first, tile), T.floormod(first, tile)
            with T.vectorized(lanes) as t:
                scale = token_scales[at_tile, token + t] * scales[row_block, r]
                real = T.Cast(REAL.dtype, acc[r, v * lanes + t]) * scale + bias[row_block, r]
                T.buffer_store(y, act(real), [at_tile, row_block * rows + r, token + t])
    if not short:
        _activate(k, activation_of(k.activation, unit), y, at, vectors)


def _activate(k: Int8Kernel, act: Activation, y: tirx.Buffer, at: tuple[Any, Any], vectors: Any) -> None:
    """Emit a loop that applies a long activation to what a pass has stored.

    Behind one another, for all sums at once, its constants and what is between would take more registers than there are.
    """
    (line, row_block), (part_line, part) = at, vectors[0]
    lanes, tile, rows = k.lines.lanes, FEATURE_MAJOR.token_tile, k.packing.rows
    together = largest_divisor(len(vectors), min(tile // lanes, TOGETHER))
    steps = len(vectors) // together
    with T.serial(rows * steps) as i:
        row = row_block * rows + T.floordiv(i, steps)
        for v in range(together):
            token = (line + part_line) * k.lines.tokens + (part + T.floormod(i, steps) * together + v) * lanes
            with T.vectorized(lanes) as t:
                here = [T.floordiv(token, tile), row, T.floormod(token, tile) + t]
                T.buffer_store(y, act(y[tuple(here)]), here)
