"""``few_token_linear_int8``: a linear layer in int8 for a handful of tokens, vectors over the rows of a register block.

The same activations and the same packed weights as ``pattern_linear_int8`` or ``quad_linear_int8``; what changes is which of
them is repeated. There four columns of some tokens are multiplied by the weights of each row, here the weights of all rows by
four columns of each token: with fewer tokens than rows that is less work. Each weight is read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import quad, repeated
from rt3_tvm.schedules.int8_blocks import Buffers, Int8Kernel, begin_lines, bring_quads, for_core, store, vector_of
from rt3_tvm.schedules.int8_lines import COLUMNS, LANE_WORDS
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, REAL
from rt3_tvm.schedules.tasks import TASKS_ATTR
from rt3_tvm.schedules.vector_math import ANY_UNIT, SHORT, Activation, VectorUnit, activation_of


@dataclass(frozen=True)
class FewTokens(Int8Kernel):
    """What fixes a kernel: ``length`` tokens of the only tile, ``chains`` sums of each result that do not wait for each other."""

    length: int
    chains: int

    @property
    def row_lanes(self) -> int:
        """Rows of a vector of weights."""
        return LANE_WORDS // 2 if self.dot.pairs else self.packing.rows if self.dot.unsigned else LANE_WORDS

    @property
    def row_vectors(self) -> int:
        """Vectors of weights of four columns."""
        return self.packing.rows // self.row_lanes

    @property
    def acc_lanes(self) -> int:
        """Sums of a vector: one for each row, or where pairs are summed two."""
        return self.row_lanes * (2 if self.dot.pairs else 1)

    @property
    def result_lanes(self) -> int:
        """Rows of a vector of results."""
        return LANE_WORDS if self.dot.pairs else self.row_lanes


@cache  # TVMScript is parsed anew on every call
def few_token_linear_int8(k: FewTokens, unit: VectorUnit = ANY_UNIT) -> tirx.PrimFunc:
    """Return the kernel, with the buffers of ``int8_linear``.

    ::

        for row block:
            acc[tokens, rows] = starts
            for four columns: for token: acc[token] += values * zip(X of the columns)[token]
            Y = act(acc * scales * token scales + bias), and zeros in the lanes that pad the tile
    """
    shape, rows, lines, tile = k.shape, k.packing.rows, k.lines, FEATURE_MAJOR.token_tile
    row_blocks, tables, quads = shape.rows // rows, shape.rows // shape.group, shape.kept // COLUMNS
    share, real, sums = shape.group // rows, REAL.dtype, k.row_vectors * k.acc_lanes
    x_size, zipped = shape.cols * lines.tokens, quads if k.zips_once else k.dot.quads

    @T.prim_func(s_tir=True)
    def few_token_linear_int8(
        x: T.handle, t: T.handle, v: T.handle, o: T.handle, b: T.handle, c: T.handle, d: T.handle, y: T.handle
    ) -> None:
        X = T.match_buffer(x, (x_size,), INT8.dtype)
        token_scales = T.match_buffer(t, (1, tile), real)
        values = T.match_buffer(v, (row_blocks, quads, rows), "int32")
        offsets = T.match_buffer(o, (tables, k.listed), shape.offset_dtype)
        bias = T.match_buffer(b, (row_blocks, rows), real)
        scales = T.match_buffer(c, (row_blocks, rows), real)
        starts = T.match_buffer(d, (row_blocks, rows), "int32")
        Y = T.match_buffer(y, FEATURE_MAJOR.shape(1, shape.rows), real)
        loaded = T.sblock_alloc_buffer((COLUMNS, lines.tokens), INT8.dtype)
        beside = T.sblock_alloc_buffer((zipped, len(k.block), lines.tokens), INT8.dtype)
        acc = T.sblock_alloc_buffer((k.chains, k.length, sums), "int32")
        results = T.sblock_alloc_buffer((k.length * rows,), real)
        begin_lines(k, Buffers(X, values, offsets, starts, loaded, beside, acc), 0, _quads)
        for rb in T.serial(row_blocks, annotations={TASKS_ATTR: 1}):
            _sum(k, Buffers(X, values, offsets, starts, loaded, beside, acc), rb, T.floordiv(rb, share))
            _scale(k, (acc, results), (token_scales, scales, bias), rb)
            _activate(k, activation_of(k.activation, unit), results)
            _spread(k, results, Y, rb)

    return few_token_linear_int8


def few_int8_kernel(k: FewTokens, cpu: CpuShape) -> tirx.PrimFunc:
    """Return the kernel for a core."""
    return for_core(few_token_linear_int8(k, cpu.unit), k, cpu, counted=True)


def _quads(lines: Sequence[tirx.Expr], part: int) -> list[tirx.Expr]:
    return [quad(lines, part)]


def _sum(k: FewTokens, b: Buffers, row_block: Any, table: Any) -> None:
    """Emit the sums of a row block."""
    lanes, nothing = k.acc_lanes, tirx.Broadcast(tirx.const(0, "int32"), k.acc_lanes)
    for chain in range(k.chains):
        for token in range(k.length):
            for a in range(k.row_vectors):
                first = chain == 0 and k.dot.unsigned
                start = vector_of(b.starts, row_block, a * lanes, lanes=lanes) if first else nothing
                store(b.acc, start, chain, token, a * lanes)
    whole = k.sums // k.chains * k.chains
    if whole:
        with T.serial(whole // k.chains) as i:
            for chain in range(k.chains):
                _add(k, b, (row_block, table), i * k.chains + chain, chain)
    for rest in range(whole, k.sums):
        _add(k, b, (row_block, table), rest, rest - whole)


def _add(k: FewTokens, b: Buffers, at: tuple[Any, Any], i: Any, chain: int) -> None:
    """Emit the dot products of one sum of int32 of all rows and tokens, and the zips that they want."""
    (row_block, table), lanes = at, k.acc_lanes
    quads = [i * k.dot.quads + q for q in range(k.dot.quads)]
    if not k.zips_once:
        for q, four in enumerate(quads):
            bring_quads(k, b, (0, table, four), k.block, q, _quads)
    for token in range(k.length):
        x = [_repeated(k, b.quads, q if k.zips_once else i, token) for i, q in enumerate(quads)]
        for a in range(k.row_vectors):
            w = [_weights(k, b.values, (row_block, q), a) for q in quads]
            # ARM multiplies by a lane of its last operand: by what is repeated.
            pair = (x, w) if k.dot.unsigned else (w, x)
            before = vector_of(b.acc, chain, token, a * lanes, lanes=lanes)
            store(b.acc, k.dot.accumulate(before, *pair), chain, token, a * lanes)


def _repeated(k: FewTokens, quads: tirx.Buffer, at: Any, token: int) -> tirx.Expr:
    """Return four columns of a token for each row of a vector."""
    words = tirx.reinterpret(
        f"int32x{k.lines.lanes}", vector_of(quads, at, token // k.lines.lanes, 0, lanes=k.lines.tokens)
    )
    word = tirx.Shuffle([words], [token % k.lines.lanes])
    return repeated(word, COLUMNS * k.row_lanes)


def _weights(k: FewTokens, values: tirx.Buffer, at: tuple[Any, Any], a: int) -> tirx.Expr:
    """Return the weights of four columns of the rows of a vector; of half a vector where sums are of pairs."""
    bytes_ = COLUMNS * k.row_lanes
    if not k.dot.pairs:
        return tirx.reinterpret(f"int8x{bytes_}", vector_of(values, *at, a * k.row_lanes, lanes=k.row_lanes))
    words = vector_of(values, *at, a // 2 * LANE_WORDS, lanes=LANE_WORDS)
    first = a % 2 * bytes_
    return tirx.Shuffle([tirx.reinterpret(f"int8x{2 * bytes_}", words)], list(range(first, first + bytes_)))


def _scale(k: FewTokens, buffers: tuple[tirx.Buffer, ...], factors: tuple[tirx.Buffer, ...], row_block: Any) -> None:
    """Emit what becomes of the sums: scales and bias; the results of a token lie beside each other."""
    (acc, results), (token_scales, scales, bias), rows = buffers, factors, k.packing.rows
    lanes = k.result_lanes
    for token in range(k.length):
        for row in range(0, rows, lanes):
            factor = tirx.Broadcast(token_scales[0, token], lanes) * vector_of(scales, row_block, row, lanes=lanes)
            total = _total(k, acc, token, row).astype(f"{REAL.dtype}x{lanes}")
            store(results, total * factor + vector_of(bias, row_block, row, lanes=lanes), token * rows + row)


def _activate(k: FewTokens, act: Activation, results: tirx.Buffer) -> None:
    """Emit the activation, a long one as a loop: behind one another its constants would take more registers than there are."""
    lanes, vectors = k.result_lanes, k.length * k.packing.rows // k.result_lanes
    with (T.unroll if k.activation in SHORT or vectors == 1 else T.serial)(vectors) as i:
        with T.vectorized(lanes) as r:
            T.buffer_store(results, act(results[i * lanes + r]), [i * lanes + r])


def _total(k: FewTokens, acc: tirx.Buffer, token: int, row: int) -> tirx.Expr:
    """Return the sums of a vector of rows, of all chains."""

    def of_chains(first: int) -> tirx.Expr:
        total = vector_of(acc, 0, token, first, lanes=k.acc_lanes)
        for chain in range(1, k.chains):
            total = total + vector_of(acc, chain, token, first, lanes=k.acc_lanes)
        return total

    if not k.dot.pairs:
        return of_chains(row)
    pairs = [of_chains(2 * row), of_chains(2 * row + k.acc_lanes)]
    even, odd = (tirx.Shuffle(pairs, list(range(first, 2 * k.acc_lanes, 2))) for first in (0, 1))
    return even + odd


def _spread(k: FewTokens, results: tirx.Buffer, y: tirx.Buffer, row_block: Any) -> None:
    """Emit the stores of results as tiles have them, zeros behind the tokens."""
    rows, tile = k.packing.rows, FEATURE_MAJOR.token_tile
    nothing = tirx.Broadcast(REAL.const(0.0), rows)
    vectors = [vector_of(results, token * rows, lanes=rows) for token in range(k.length)]
    vectors += [nothing] * max(1, tile // rows - k.length)  # as many lanes as a tile has
    for row in range(rows):
        order = [token * rows + row if token < k.length else k.length * rows for token in range(tile)]
        store(y, tirx.Shuffle(vectors, order), 0, row_block * rows + row, 0)
