"""``pattern_linear`` and ``dense_linear``: Y = act(W X + b) on feature-major activations.

Activations are tiled feature-major, (token tiles, features, TOKEN_TILE): one cache line holds one feature of 16 tokens,
so a kept weight is a scalar broadcast times contiguous vectors whatever the pattern. At compile time every group of V
rows gets the list of its kept columns (block pruning, pattern and assignment resolved into one offset table), each list
equally long, cut into ``column_blocks`` parts so that the part of X in use stays in L1. A group's V rows are worked on in
register blocks of ``rows`` rows that share the table.

The dense kernel is the same nest: one group of all rows that keeps every column. Its table is small, stays in L1, and costs
one scalar load per register block and column.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from rt3_tvm.schedules.vector_math import ACTIVATIONS
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

TOKEN_TILE = 16
"""Tokens of one tile of the feature-major layout: 64 bytes of float32, a cache line on every CPU we target."""

FMA_CHAINS = 8
"""Accumulators that hide the latency of a fused multiply-add: 4 cycles times 2 pipes on the cores we target."""

KEPT_PER_ROW = 16
"""Kept columns of a column block for each row of a register block: below that, visits to the accumulators cost more than
X in L2 instead of L1 (seen on AVX2 at 90 % sparsity; not measured on ARM)."""

FEW_KEPT = 0.3
"""Single rows that keep less than this take narrower token blocks over more columns: fewer visits to each accumulator."""

MAX_ROWS = 8
"""Rows of a register block where there are 32 vector registers."""

L1_SHARE = 0.75
"""Part of the L1 data cache given to the X tile; the rest is for weights, tables and Y."""


@dataclass(frozen=True)
class CpuShape:
    """What a kernel's decisions depend on: vector lanes of float32, vector registers, L1 data cache in bytes."""

    lanes: int
    registers: int
    l1d_bytes: int


@dataclass(frozen=True)
class LinearPacking:
    """How the weights of a linear layer lie in memory; the same for every sequence length.

    ``rows``: rows of a register block; ``column_blocks``: parts that the kept columns are cut into.
    """

    rows: int
    column_blocks: int


@dataclass(frozen=True)
class LinearDecisions:
    """Decisions of a schedule.

    ``vectors``: vectors of tokens in a register block; ``groups``: register blocks worked on at once;
    ``unroll``: kept columns per iteration of the inner loop.
    """

    vectors: int
    groups: int = 1
    unroll: int = 1


@dataclass(frozen=True)
class LinearShape:
    """Sizes of one linear layer: ``kept`` columns a group of ``group`` rows, padded to equal column blocks."""

    tiles: int
    rows: int
    cols: int
    kept: int
    group: int
    offset_dtype: str = "uint16"

    @property
    def dense(self) -> bool:
        """Whether all rows share one table, so that nothing is skipped."""
        return self.group == self.rows


def _largest_divisor(n: int, limit: int) -> int:
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


def _token_vectors(cpu: CpuShape, rows: int, tokens: int) -> int:
    """Return the vectors of tokens that give a register block of ``rows`` rows enough accumulators, and that fit."""
    # Accumulators of all rows and one X vector each, and one broadcast; a single row reads X straight from memory.
    budget = (cpu.registers - 1) // (rows + 1) if rows > 1 else cpu.registers // 2
    wanted = max(1, min(budget, -(-FMA_CHAINS // rows) if cpu.registers <= 16 else -(-2 * FMA_CHAINS // rows)))
    vectors_in_tile = max(1, TOKEN_TILE // cpu.lanes)
    candidates = [v for v in range(1, wanted + 1) if tokens % (v * cpu.lanes) == 0 or v == 1]
    aligned = [v for v in candidates if v % vectors_in_tile == 0 or vectors_in_tile % v == 0]
    return max(aligned)


def choose_packing(cpu: CpuShape, cols: int, kept: int, group: int) -> LinearPacking:
    """Return the packing of a matrix of which every group of ``group`` rows keeps ``kept`` of ``cols`` columns."""
    rows = _largest_divisor(group, MAX_ROWS if group > MAX_ROWS and cpu.registers > 16 else 6 if group > 16 else 4)
    tokens = _token_vectors(cpu, rows, 1 << 10) * cpu.lanes
    if rows == 1 and kept < FEW_KEPT * cols:
        tokens = max(TOKEN_TILE, tokens // 2)
    columns_in_l1 = max(TOKEN_TILE, int(cpu.l1d_bytes * L1_SHARE) // (4 * tokens))
    blocks = min(round(cols / columns_in_l1), kept // (KEPT_PER_ROW * rows))
    return LinearPacking(rows=rows, column_blocks=max(1, blocks))


def choose_decisions(cpu: CpuShape, shape: LinearShape, packing: LinearPacking) -> LinearDecisions:
    """Return the default decisions for one shape."""
    vectors = _token_vectors(cpu, packing.rows, shape.tiles * TOKEN_TILE)
    block_bytes = 4 * cpu.lanes * shape.cols // packing.column_blocks
    while (
        packing.rows == 1 and vectors % 2 == 0 and vectors * block_bytes > cpu.l1d_bytes and packing.column_blocks > 1
    ):
        vectors //= 2
    row_blocks = shape.rows // packing.rows
    fits = max(1, (cpu.registers - 2) // (packing.rows * vectors))
    wanted = max(1, min(fits, FMA_CHAINS // (packing.rows * vectors)))
    per_block = shape.kept // packing.column_blocks
    return LinearDecisions(
        vectors=vectors,
        groups=_largest_divisor(row_blocks, wanted),
        unroll=2 if packing.rows <= 2 and per_block >= 2 else 1,
    )


@cache  # TVMScript is parsed anew on every call
def linear_algorithm(
    shape: LinearShape, packing: LinearPacking, decisions: LinearDecisions, lanes: int, activation: str
) -> tirx.PrimFunc:
    """Return the loop nest, blocked by the packing, not yet vectorised.

    Buffers: x (tiles * cols * 16,), values (column_blocks, row_blocks, kept / column_blocks, rows),
    [offsets (column_blocks, rows / group, kept / column_blocks): column * 16], bias (row_blocks, rows),
    y (tiles, rows, 16).
    ::

        for column block, token block, row block:
            acc[groups, rows, vectors * lanes] = bias, or Y of the column block before
            for k: acc += values[k] * X[offsets[k]]
            Y = acc, or act(acc) after the last column block
    """
    act = ACTIVATIONS[activation]
    tiles, cols, rows = shape.tiles, shape.cols, packing.rows
    blocks, gi = packing.column_blocks, decisions.groups
    tokens = decisions.vectors * lanes
    row_blocks, kept = shape.rows // rows, shape.kept // blocks
    token_blocks = tiles * TOKEN_TILE // tokens
    share = shape.group // rows
    tables = shape.rows // shape.group
    x_size, tile_size = tiles * cols * TOKEN_TILE, cols * TOKEN_TILE
    offset_dtype, last = shape.offset_dtype, blocks - 1
    outer = row_blocks // gi

    # X of the next token block, a few lines with each row block, so that it is in L2 when its turn comes.
    block_cols = -(-cols // blocks)
    lines = block_cols * max(1, tokens // TOKEN_TILE)
    prefetches = -(-lines // outer)

    def ahead(c: Any, b: Any, r: Any, p: Any) -> Any:
        """Return the offset in X of the p-th line that row block r fetches for the token block after b."""
        line = T.min(r * prefetches + p, lines - 1)
        following = T.floormod(b + 1, token_blocks)
        block = T.min(c + T.floordiv(b + 1, token_blocks), blocks - 1)
        col = T.min(block * block_cols + T.floormod(line, block_cols), cols - 1)
        return tile_of(following, T.floordiv(line, block_cols) * TOKEN_TILE) * tile_size + col * TOKEN_TILE

    def tile_of(block: Any, t: Any) -> Any:
        return T.floordiv(block * tokens + t, TOKEN_TILE)

    def lane_of(block: Any, t: Any) -> Any:
        return T.floormod(block * tokens + t, TOKEN_TILE)

    @T.prim_func(s_tir=True)
    def pattern_linear(x: T.handle, v: T.handle, o: T.handle, b: T.handle, y: T.handle):
        X = T.match_buffer(x, (x_size,), "float32")
        values = T.match_buffer(v, (blocks, row_blocks, kept, rows), "float32")
        offsets = T.match_buffer(o, (blocks, tables, kept), offset_dtype)
        bias = T.match_buffer(b, (row_blocks, rows), "float32")
        Y = T.match_buffer(y, (tiles, row_blocks * rows, TOKEN_TILE), "float32")
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
                    Y[0:tiles, 0 : row_blocks * rows, 0:TOKEN_TILE],
                )
                T.writes(Y[0:tiles, 0 : row_blocks * rows, 0:TOKEN_TILE])
                acc = T.sblock_alloc_buffer((gi, rows, tokens), "float32")
                for p in T.unroll(prefetches):
                    T.evaluate(prefetch(T.address_of(X[ahead(vc, vb, vr, p)])))
                for k, g, r, t in T.grid(kept, gi, rows, tokens):
                    with T.sblock("multiply"):
                        vk = T.axis.reduce(kept, k)
                        vg, vv, vt = T.axis.remap("SSS", [g, r, t])
                        with T.init():
                            acc[vg, vv, vt] = T.Select(
                                vc == 0,
                                bias[vr * gi + vg, vv],
                                Y[tile_of(vb, vt), (vr * gi + vg) * rows + vv, lane_of(vb, vt)],
                            )
                        acc[vg, vv, vt] = (
                            acc[vg, vv, vt]
                            + values[vc, vr * gi + vg, vk, vv]
                            * X[
                                tile_of(vb, vt) * tile_size
                                + T.Cast("int32", offsets[vc, T.floordiv(vr * gi + vg, share), vk])
                                + lane_of(vb, vt)
                            ]
                        )
                if vc == last:
                    for g, r, t in T.grid(gi, rows, tokens):
                        with T.sblock("finish"):
                            vg, vv, vt = T.axis.remap("SSS", [g, r, t])
                            Y[tile_of(vb, vt), (vr * gi + vg) * rows + vv, lane_of(vb, vt)] = act(acc[vg, vv, vt])
                else:
                    for g, r, t in T.grid(gi, rows, tokens):
                        with T.sblock("store"):
                            vg, vv, vt = T.axis.remap("SSS", [g, r, t])
                            Y[tile_of(vb, vt), (vr * gi + vg) * rows + vv, lane_of(vb, vt)] = acc[vg, vv, vt]

    return pattern_linear


def prefetch(address: tirx.Expr) -> tirx.Expr:
    """Return a hint to read a line into L2 (llvm.prefetch: read, locality 2, data)."""
    return T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(2), T.int32(1))


def vectorise_tokens(sch: Schedule, block: str, lanes: int) -> None:
    """Turn the innermost token loop of ``block`` into vectors, and unroll what is around it.

    ``for g, r, t`` becomes ``unrolled g, r, t0: vector t1``, so that accumulators live in registers.
    """
    g, r, t = sch.get_loops(sch.get_sblock(block))[-3:]
    t0, t1 = sch.split(t, [None, lanes])
    sch.vectorize(t1)
    for loop in (g, r, t0):
        sch.unroll(loop)


def unroll_columns(sch: Schedule, unroll: int) -> None:
    """Unroll the loop over kept columns by ``unroll``, and lift the initialisation of the accumulators out of it."""
    block = sch.get_sblock("multiply")
    k = sch.get_loops(block)[-5]
    outer = k
    extent = int(sch.get(k).extent)
    if unroll > 1 and extent % unroll == 0:
        outer, inner = sch.split(k, [None, unroll])
        sch.unroll(inner)
    init = sch.decompose_reduction(block, outer)
    for loop in sch.get_loops(init)[-4:-1]:
        sch.unroll(loop)


def schedule_linear(func: tirx.PrimFunc, decisions: LinearDecisions, lanes: int) -> tirx.PrimFunc:
    """Return the scheduled kernel: vectors over tokens, accumulators in registers."""
    sch = Schedule(func)
    for block in ("finish", "store", "multiply"):
        vectorise_tokens(sch, block, lanes)
    unroll_columns(sch, decisions.unroll)
    return sch.mod["main"]
