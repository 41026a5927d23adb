"""Which packing and which register blocks a linear layer of int8 gets: the model of ``linear_decisions`` for kernels of int8.

An iteration's loads, zips and dot products overlap, though not perfectly; quads are not zipped. What is legal depends on how
many columns are kept only in that they are padded to whole iterations, so that the cost of the best choice never rises where
fewer are kept.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.few_tokens_int8 import FewTokens
from rt3_tvm.schedules.int8_blocks import Int8Kernel
from rt3_tvm.schedules.int8_lines import COLUMNS, LANE_BYTES, LANE_WORDS, PARTS, Lines, Quantised
from rt3_tvm.schedules.int8_packing import int8_kept
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8
from rt3_tvm.schedules.linear_decisions import (
    L1_SHARE,
    LINE_BYTES,
    MAX_ROWS,
    TYPICAL_TOKENS,
    LinearDecisions,
    LinearPacking,
    LinearShape,
    MatrixShape,
)
from rt3_tvm.schedules.packing import offset_dtype

FINISH_CYCLES = 2.5
"""Scaling and storing one accumulator."""
ITERATION_CYCLES = 1.0
"""Counting and jumping."""
UNROLLED = (4, 2, 1)
"""Dot products of a row in an iteration, those that the instruction sums by itself counted as one."""
FEW_ROWS = 2
MOST_FEW = 8
"""Tokens that a kernel with vectors over rows serves at most."""
FOR_FEW = 0.03
"""Part of the typical cycles that a packing may cost more, so that a handful of tokens are served by vectors of rows."""
CHAINS = 4
"""Sums that hide the latency of a dot product."""
MOST_LINES = 2
"""Lines of a register block; their accumulators would not fit otherwise."""


def takes_quads(cpu: CpuShape) -> bool:
    """Return whether a core multiplies four columns at once, so that those lie beside each other."""
    return bool(cpu.dot) and not DOT_PRODUCTS[cpu.dot].pairs


def lines_of(cpu: CpuShape, length: int = TYPICAL_TOKENS, quads: bool = False) -> Lines:
    """Return how activations of int8 lie for a core: a handful of tokens in narrower vectors, of which fewer lanes hold none."""
    wide = [bytes_ for bytes_ in (LANE_BYTES, 2 * LANE_BYTES) if length * PARTS <= bytes_ < cpu.vector_bytes]
    return DOT_PRODUCTS[cpu.dot].lines(min((*wide, cpu.vector_bytes)), quads)


def quantised_for(cpu: CpuShape, length: int = TYPICAL_TOKENS, batch: int = 1, quads: bool = False) -> Quantised:
    """Return the activations that kernels of a core read, of sequences of some tokens.

    Where a line is of several tiles all of their tokens are served, unless there is but one.
    """
    lines = lines_of(cpu, length, quads)
    if batch > 1 and lines.tiles > 1:
        return Quantised(cpu.dot, lines_of(cpu, quads=quads))
    return Quantised(cpu.dot, lines, lines.served(length))


def _zips(vectors: list[tuple[int, int]]) -> int:
    """Return the zips that make some vectors: bytes of two pairs of lines for each half of a line, then pairs of bytes."""
    return 2 * len({(line, part // 2) for line, part in vectors}) + len(vectors)


def int8_cycles(cpu: CpuShape, kernel: Int8Kernel) -> float:
    """Return the modelled cycles of one call, weights in L2.

    Zips and dot products take turns in the vector units; loads overlap with them, though not perfectly (a cubic norm). What lies
    in quads, zipped once or by the quantiser, is loaded as it is multiplied.
    """
    cost, shape, rows, lines = cpu.cost(INT8), kernel.shape, kernel.packing.rows, kernel.lines
    once, in_quads = kernel.zips_once, kernel.zips_once or not kernel.zips
    blocks = lines.count(shape.tiles) / kernel.block_lines
    x_bytes = lines.tokens * shape.cols * kernel.block_lines
    beyond_l1 = max(0.0, 1.0 - L1_SHARE * cpu.l1d_bytes / x_bytes)
    line = cost.load + cost.l2_line * lines.tokens / LINE_BYTES * beyond_l1
    looked_up = kernel.offsets_of_four * (cost.offset if kernel.looks_up else 0.0)
    weights = rows * (cost.broadcast + cost.l2_line * COLUMNS / LINE_BYTES)
    total, dots, iterations = 0.0, shape.kept / COLUMNS, kernel.sums / kernel.packing.unroll
    for vectors in kernel.passes:
        mixed = 0.0 if in_quads else _zips(vectors) * cost.zip
        loads = weights + (len(vectors) if in_quads else COLUMNS * kernel.block_lines) * line
        loads += 0.0 if once else looked_up
        multiplies = rows * len(vectors) * cost.fma
        one = ((multiplies + mixed) ** 3 + loads**3) ** (1 / 3)
        total += dots * one + iterations * ITERATION_CYCLES + cost.visit + FINISH_CYCLES * rows * len(vectors)
    zipping = dots * (2 * COLUMNS * kernel.block_lines * cost.load + _zips(kernel.block) * cost.zip)
    return blocks * (total * shape.rows / rows + (zipping if once else 0.0))


def kernels(
    cpu: CpuShape,
    shape: LinearShape,
    packing: LinearPacking,
    activation: str = "none",
    read: Quantised | None = None,
) -> Iterator[Int8Kernel]:
    """Yield the kernels that a packing can have, those of fewer vectors of tokens first; one vector where not even that fits."""
    read = read or quantised_for(cpu, quads=shape.quads)
    lines = read.lines
    parts = len(lines.parts(shape.tiles, read.served))
    whole = shape.tiles % lines.tiles == 0 and parts == PARTS
    several = [PARTS * n for n in range(2, MOST_LINES + 1) if whole and lines.count(shape.tiles) % n == 0]
    for vectors in (*(v for v in range(1, parts + 1) if parts % v == 0), *several):
        kernel = Int8Kernel(shape, packing, LinearDecisions(vectors), read, activation)
        if vectors == 1 or _fits(cpu, kernel):
            yield kernel


def _fits(cpu: CpuShape, kernel: Int8Kernel) -> bool:
    """Return whether a register block stays in registers.

    Beside the accumulators: what they are multiplied by, and the lines that it is made of. Of few rows LLVM zips that of a
    whole iteration ahead.
    """
    dot, rows, vectors = DOT_PRODUCTS[cpu.dot], kernel.packing.rows, kernel.decisions.vectors
    ahead = kernel.packing.unroll if rows <= FEW_ROWS and kernel.zips else 1
    lines = COLUMNS if kernel.zips and not kernel.zips_once else 0
    beside = vectors * dot.quads * ahead + lines + dot.temporaries
    return rows * vectors + beside < cpu.registers and rows * vectors <= (cpu.cost(INT8).held or cpu.registers)


def few_kernel(
    cpu: CpuShape, shape: LinearShape, packing: LinearPacking, length: int, activation: str = "none"
) -> FewTokens | None:
    """Return the kernel with vectors over rows for some tokens, if those are whole vectors and their sums stay in registers."""
    read, rows = quantised_for(cpu, length, quads=shape.quads), packing.rows
    dot, cost = DOT_PRODUCTS[cpu.dot], cpu.cost(INT8)
    if shape.tiles > 1 or length > MOST_FEW or rows % LANE_WORDS:
        return None
    few = FewTokens(shape, packing, LinearDecisions(len(read.lines.parts(1, read.served))), read, activation, length, 1)
    sums, room = length * few.row_vectors, cpu.registers - COLUMNS - dot.quads - dot.temporaries
    if sums > min(room, cost.held or room):
        return None
    return replace(few, chains=max(1, min(CHAINS, room) // sums))


def few_cycles(cpu: CpuShape, few: FewTokens) -> float:
    """Return the modelled cycles of a call of the kernel with vectors over rows, as ``int8_cycles`` does."""
    cost, shape, rows, once = cpu.cost(INT8), few.shape, few.packing.rows, few.zips_once
    vectors, quads = few.length * rows / few.row_lanes, shape.kept / COLUMNS
    zips = _zips(few.block) * cost.zip if few.zips else 0.0
    repeats = 0.0 if cpu.by_lane and not few.dot.pairs else few.length * cost.zip
    weights = rows * (cost.load / LANE_WORDS + cost.l2_line * COLUMNS / LINE_BYTES)
    looked_up = few.offsets_of_four * cost.offset if few.looks_up and not once else 0.0
    loads = weights + (COLUMNS if few.zips and not once else len(few.block)) * cost.load + looked_up
    multiplies = few.length * rows / LANE_WORDS * cost.fma if few.dot.pairs else vectors * cost.fma
    one = ((multiplies + repeats + (0.0 if once else zips)) ** 3 + loads**3) ** (1 / 3)
    finish = cost.visit + FINISH_CYCLES * vectors + rows * cost.load
    zipping = quads * (2 * COLUMNS * cost.load + zips) if once else 0.0
    return (quads * one + few.sums / few.chains * ITERATION_CYCLES + finish) * shape.rows / rows + zipping


@cache
def few_pays(cpu: CpuShape, shape: LinearShape, packing: LinearPacking, length: int, batch: int) -> bool:
    """Return whether the kernel with vectors over rows is modelled to be the faster one."""
    few = few_kernel(cpu, shape, packing, length) if batch == 1 else None
    if few is None:
        return False
    return few_cycles(cpu, few) < min(int8_cycles(cpu, k) for k in kernels(cpu, shape, packing, read=few.read))


@cache
def choose_int8_decisions(
    cpu: CpuShape, shape: LinearShape, packing: LinearPacking, read: Quantised
) -> LinearDecisions:
    """Return the cheapest register block for a packing and a number of tokens."""
    return min(kernels(cpu, shape, packing, read=read), key=lambda kernel: int8_cycles(cpu, kernel)).decisions


def int8_shape(cpu: CpuShape, matrix: MatrixShape, packing: LinearPacking, tiles: int) -> LinearShape:
    """Return the shape of a packed matrix for some token tiles."""
    kept, offsets = int8_kept(matrix.kept, DOT_PRODUCTS[cpu.dot], packing), offset_dtype(matrix.cols)
    return LinearShape(tiles, matrix.rows, matrix.cols, kept, matrix.group, offsets, quads=matrix.quads)


def split_lines(lines: Lines, shape: LinearShape) -> list[LinearShape]:
    """Return the parts in which tiles are served: whole lines, and a rest that computes nothing for what fills up its line."""
    tiles = lines.tiles
    whole = shape.tiles // tiles * tiles
    return [shape.part(0, whole), shape.part(whole, shape.tiles - whole)] if 0 < whole < shape.tiles else [shape]


def int8_packings(cpu: CpuShape, matrix: MatrixShape) -> Iterator[LinearPacking]:
    """Yield the packings that a matrix can have."""
    dot, most = DOT_PRODUCTS[cpu.dot], min(MAX_ROWS, cpu.cost(INT8).held or MAX_ROWS)
    for rows in (r for r in range(1, most + 1) if matrix.group % r == 0):
        for unroll in UNROLLED:
            fits = rows + dot.quads * unroll + COLUMNS + dot.temporaries < cpu.registers
            if unroll == 1 or fits:
                yield LinearPacking(rows, 1, unroll)


def _weighed(cpu: CpuShape, matrix: MatrixShape) -> list[tuple[float, LinearPacking]]:
    """Return the packings of a matrix with their modelled cycles at the typical number of tokens, the cheapest first."""
    tiles = FEATURE_MAJOR.tiles(TYPICAL_TOKENS)
    found = []
    for packing in int8_packings(cpu, matrix):
        shape = int8_shape(cpu, matrix, packing, tiles)
        best = min(int8_cycles(cpu, kernel) for kernel in kernels(cpu, shape, packing))
        lone = by_word(cpu, packing) * shape.kept / COLUMNS * shape.rows * tiles / lines_of(cpu).tiles
        found.append((best + lone, packing))
    return sorted(found, key=lambda pair: pair[0])


def by_word(cpu: CpuShape, packing: LinearPacking) -> float:
    """Return the cycles that a weight costs where it cannot be had as a lane of a vector."""
    words = packing.rows * packing.unroll * DOT_PRODUCTS[cpu.dot].quads
    return cpu.cost(INT8).load if cpu.by_lane and words % (cpu.vector_bytes // COLUMNS) else 0.0


@cache
def choose_int8_packing(cpu: CpuShape, matrix: MatrixShape) -> LinearPacking:
    """Return the cheapest packing of a matrix; of several almost as cheap one that a handful of tokens gains from."""
    found = _weighed(cpu, matrix)
    near = [packing for cycles, packing in found if cycles <= (1.0 + FOR_FEW) * found[0][0]]
    return next((packing for packing in near if packing.rows % LANE_WORDS == 0), near[0])


@cache
def best_int8_cycles(cpu: CpuShape, matrix: MatrixShape) -> float:
    """Return the modelled cycles of a matrix at the typical number of tokens."""
    return _weighed(cpu, matrix)[0][0]


def quantise_cycles(cpu: CpuShape, cols: int) -> float:
    """Return the modelled cycles of quantising the activations of a layer: two loads and four operations a vector."""
    cost, vectors = cpu.cost(INT8), cols * TYPICAL_TOKENS / lines_of(cpu).lanes
    return vectors * (2.0 * cost.load + 4.0 * cost.zip)
