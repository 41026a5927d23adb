"""``pattern_linear_int8`` and ``dense_linear_int8``: Y = act((W X) * scales + b), W and X in int8, sums in int32.

The lists of kept columns are those of ``pattern_linear``. Four at a time are zipped (``int8_lines.py``), and what comes out
is multiplied by the weights of each row of a register block, four columns in an instruction. All columns are summed before a
register block is left: an int8 line of X is so short that they stay in L1.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS, quad, repeated
from rt3_tvm.schedules.int8_lines import COLUMNS, PARTS, Lines
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, REAL
from rt3_tvm.schedules.linear_decisions import LinearDecisions, LinearPacking, LinearShape
from rt3_tvm.schedules.packing import OFFSET_UNIT
from rt3_tvm.schedules.tasks import BY_LANE_ATTR, TASKS_ATTR
from rt3_tvm.schedules.vector_math import ACTIVATIONS


@dataclass(frozen=True)
class Int8Kernel:
    """What fixes a kernel.

    A register block is ``packing.rows`` rows times ``decisions.vectors`` vectors of tokens: a part of a line, so that the kernel
    passes over a line several times, or whole lines.
    """

    shape: LinearShape
    packing: LinearPacking
    decisions: LinearDecisions
    dot: str
    lines: Lines
    activation: str

    @property
    def parts(self) -> int:
        """Vectors of a line that hold tokens."""
        return min(PARTS, self.shape.tokens // self.lines.lanes)

    @property
    def block_lines(self) -> int:
        """Lines of a register block."""
        return max(1, self.decisions.vectors // PARTS)

    @property
    def passes(self) -> list[list[tuple[int, int]]]:
        """For each pass the line and the part of each vector of its register block."""
        if self.block_lines > 1:
            return [[(line, part) for line in range(self.block_lines) for part in range(PARTS)]]
        step = self.decisions.vectors
        return [[(0, part) for part in range(first, first + step)] for first in range(0, self.parts, step)]

    @property
    def step(self) -> int:
        """Columns of an iteration."""
        return COLUMNS * DOT_PRODUCTS[self.dot].quads * self.packing.unroll

    @property
    def flops(self) -> float:
        """Operations of a call: of columns that are kept, with those that fill up an iteration."""
        return 2.0 * self.shape.rows * self.shape.kept * self.shape.tokens

    @property
    def looks_up(self) -> bool:
        """Whether columns come from a table; dense whole steps are simply one after the other."""
        return not self.shape.dense or self.shape.kept != self.shape.cols


@dataclass(frozen=True, eq=False)
class _Buffers:
    """Of one kernel, and of its registers."""

    x: tirx.Buffer
    values: tirx.Buffer
    offsets: tirx.Buffer
    starts: tirx.Buffer
    lines: tirx.Buffer
    quads: tirx.Buffer
    acc: tirx.Buffer


def _vector(buffer: tirx.Buffer, *indices: Any, lanes: int) -> tirx.Expr:
    """Return a vector of a buffer that begins at an index."""
    return tirx.BufferLoad(buffer, [*indices[:-1], tirx.Ramp(indices[-1], 1, lanes)])


def _store(buffer: tirx.Buffer, value: tirx.Expr, *indices: Any) -> None:
    T.buffer_store(buffer, value, [*indices[:-1], tirx.Ramp(indices[-1], 1, int(value.ty.dtype.lanes))])


@cache  # TVMScript is parsed anew on every call
def int8_linear(k: Int8Kernel) -> tirx.PrimFunc:
    """Return the kernel.

    Buffers: x (lines * cols * tokens of a line), token_scales (tiles, 16), values (row blocks, quads, rows), each four weights of
    a row, offsets (rows / group, kept): column * 16, bias, scales and starts (row blocks, rows), y (tiles, rows, 16).
    ::

        for line, row block:
            for pass:
                acc[rows, vectors] = starts
                for four columns: acc += values * zip(X of the columns)
                Y = act(acc * scales * token scales + bias)
    """
    shape, rows, lines, tile = k.shape, k.packing.rows, k.lines, FEATURE_MAJOR.token_tile
    row_blocks, tables, quads = shape.rows // rows, shape.rows // shape.group, shape.kept // COLUMNS
    tiles, share, real = shape.buffer_tiles, shape.group // rows, REAL.dtype
    x_size = lines.count(tiles) * shape.cols * lines.tokens
    blocks = lines.count(shape.tiles) // k.block_lines
    first_line, step = shape.first // lines.tiles, k.step // COLUMNS

    @T.prim_func(s_tir=True)
    def int8_linear(
        x: T.handle, t: T.handle, v: T.handle, o: T.handle, b: T.handle, c: T.handle, d: T.handle, y: T.handle
    ) -> None:
        X = T.match_buffer(x, (x_size,), INT8.dtype)
        token_scales = T.match_buffer(t, (tiles, tile), real)
        values = T.match_buffer(v, (row_blocks, quads, rows), "int32")
        offsets = T.match_buffer(o, (tables, shape.kept), shape.offset_dtype)
        bias = T.match_buffer(b, (row_blocks, rows), real)
        scales = T.match_buffer(c, (row_blocks, rows), real)
        starts = T.match_buffer(d, (row_blocks, rows), "int32")
        Y = T.match_buffer(y, FEATURE_MAJOR.shape(tiles, shape.rows), real)
        loaded = T.sblock_alloc_buffer((COLUMNS, lines.tokens), INT8.dtype)
        zipped = T.sblock_alloc_buffer((step, k.decisions.vectors, lines.tokens), INT8.dtype)
        acc = T.sblock_alloc_buffer((rows, k.decisions.vectors * lines.lanes), "int32")
        for lb in range(blocks):
            for rb in T.serial(row_blocks, annotations={TASKS_ATTR: 1}):
                _register_blocks(
                    k,
                    _Buffers(X, values, offsets, starts, loaded, zipped, acc),
                    (lb * k.block_lines + first_line, rb, T.floordiv(rb, share)),
                    lambda vectors, line: _finish(k, (Y, acc, token_scales, scales, bias), (line, rb), vectors),
                )

    return int8_linear


def int8_kernel(k: Int8Kernel, cpu: CpuShape) -> tirx.PrimFunc:
    """Return the kernel for a core: weights by lane where it multiplies so."""
    func = int8_linear(k)
    if not cpu.by_lane:
        return func
    marks = {"weights": ["values"], "pointers": ["X", "values", "offsets"], "lanes": cpu.vector_bytes // COLUMNS}
    return func.with_attr(BY_LANE_ATTR, marks | {"line": k.lines.tokens, "fuse": False})


def _register_blocks(k: Int8Kernel, b: _Buffers, at: tuple[Any, Any, Any], finish: Any) -> None:
    """Emit the passes over a line: ``at`` is the line, the row block and its table."""
    line, row_block, table = at
    lanes = k.lines.lanes
    for vectors in k.passes:
        for r in range(k.packing.rows):
            for v in range(len(vectors)):
                _store(b.acc, tirx.Broadcast(b.starts[row_block, r], lanes), r, v * lanes)
        with T.serial(k.shape.kept // k.step) as i:
            _zip(k, b, (line, table, i), vectors)
            _multiply(k, b, (row_block, i), vectors)
        finish(vectors, line)


def _column(k: Int8Kernel, b: _Buffers, table: Any, index: Any) -> Any:
    """Return where the line of a kept column begins among those of its tokens."""
    if not k.looks_up:
        return index * k.lines.tokens
    return T.Cast("int32", b.offsets[table, index]) * (k.lines.tokens // OFFSET_UNIT)


def _zip(k: Int8Kernel, b: _Buffers, at: tuple[Any, Any, Any], vectors: list[tuple[int, int]]) -> None:
    """Emit the loads of an iteration's lines, and the zips of the vectors of a pass."""
    (line, table, i), width = at, k.lines.tokens
    for q in range(k.step // COLUMNS):
        for part_line in range(k.block_lines):
            base = (line + part_line) * (k.shape.cols * width)
            for c in range(COLUMNS):
                start = base + _column(k, b, table, i * k.step + q * COLUMNS + c)
                _store(b.lines, _vector(b.x, start, lanes=width), c, 0)
            four = [_vector(b.lines, c, 0, lanes=width) for c in range(COLUMNS)]
            for v, part in ((v, part) for v, (at_line, part) in enumerate(vectors) if at_line == part_line):
                _store(b.quads, quad(four, part), q, v, 0)


def _multiply(k: Int8Kernel, b: _Buffers, at: tuple[Any, Any], vectors: list[tuple[int, int]]) -> None:
    """Emit the dot products of an iteration."""
    (row_block, i), dot, lanes = at, DOT_PRODUCTS[k.dot], k.lines.lanes
    quads, width = k.step // COLUMNS, k.lines.tokens
    for first in range(0, quads, dot.quads):
        together = range(first, first + dot.quads)
        for r in range(k.packing.rows):
            weights = [repeated(b.values[row_block, i * quads + q, r], width) for q in together]
            for v in range(len(vectors)):
                x = [_vector(b.quads, q, v, 0, lanes=width) for q in together]
                _store(b.acc, dot.accumulate(_vector(b.acc, r, v * lanes, lanes=lanes), x, weights), r, v * lanes)


def _finish(k: Int8Kernel, buffers: tuple[tirx.Buffer, ...], at: tuple[Any, Any], vectors: Any) -> None:
    """Emit what becomes of the sums of a pass."""
    (y, acc, token_scales, scales, bias), (line, row_block) = buffers, at
    act, lanes, tile, rows = ACTIVATIONS[k.activation], k.lines.lanes, FEATURE_MAJOR.token_tile, k.packing.rows
    for r in range(rows):
        for v, (part_line, part) in enumerate(vectors):
            first = (line + part_line) * k.lines.tokens + part * lanes
            at_tile, token = T.floordiv(first, tile), T.floormod(first, tile)
            with T.vectorized(lanes) as t:
                scale = token_scales[at_tile, token + t] * scales[row_block, r]
                real = T.Cast(REAL.dtype, acc[r, v * lanes + t]) * scale + bias[row_block, r]
                T.buffer_store(y, act(real), [at_tile, row_block * rows + r, token + t])
