"""Which packing and which register blocks a linear layer of int8 gets: the model of ``linear_decisions`` for kernels that zip.

An iteration's loads, zips and dot products overlap, though not perfectly. What is legal depends on how many columns are kept only
in that they are padded to whole iterations, so that the cost of the best choice never rises where fewer are kept.
"""

from collections.abc import Iterator
from functools import cache

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_linear import Int8Kernel
from rt3_tvm.schedules.int8_lines import COLUMNS, PARTS, Lines, Quantised
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
MOST_LINES = 2
"""Lines of a register block; their accumulators would not fit otherwise."""


def lines_of(cpu: CpuShape) -> Lines:
    """Return how activations of int8 lie for a core."""
    return DOT_PRODUCTS[cpu.dot].lines(cpu.vector_bytes)


def quantised_for(cpu: CpuShape) -> Quantised:
    """Return the activations that kernels of a core read."""
    return Quantised(cpu.dot, lines_of(cpu))


def _zips(vectors: list[tuple[int, int]]) -> int:
    """Return the zips that make some vectors: bytes of two pairs of lines for each half of a line, then pairs of bytes."""
    return 2 * len({(line, part // 2) for line, part in vectors}) + len(vectors)


def int8_cycles(cpu: CpuShape, kernel: Int8Kernel) -> float:
    """Return the modelled cycles of one call, weights in L2.

    Zips and dot products take turns in the vector units; loads overlap with them, though not perfectly (a cubic norm).
    """
    cost, shape, rows, lines = cpu.cost(INT8), kernel.shape, kernel.packing.rows, kernel.lines
    once, blocks = kernel.zips_once, lines.count(shape.tiles) / kernel.block_lines
    x_bytes = lines.tokens * shape.cols * kernel.block_lines
    beyond_l1 = max(0.0, 1.0 - L1_SHARE * cpu.l1d_bytes / x_bytes)
    line = cost.load + cost.l2_line * lines.tokens / LINE_BYTES * beyond_l1
    looked_up = COLUMNS * (cost.offset if kernel.looks_up else 0.0)
    weights = rows * (cost.broadcast + cost.l2_line * COLUMNS / LINE_BYTES)
    total, dots, iterations = 0.0, shape.kept / COLUMNS, kernel.sums / kernel.packing.unroll
    for vectors in kernel.passes:
        mixed = 0.0 if once else _zips(vectors) * cost.zip
        loads = weights + (len(vectors) * line if once else COLUMNS * kernel.block_lines * line + looked_up)
        multiplies = rows * len(vectors) * cost.fma
        one = ((multiplies + mixed) ** 3 + loads**3) ** (1 / 3)
        total += dots * one + iterations * ITERATION_CYCLES + cost.visit + FINISH_CYCLES * rows * len(vectors)
    zipping = dots * (2 * COLUMNS * kernel.block_lines * cost.load + _zips(kernel.block) * cost.zip)
    return blocks * (total * shape.rows / rows + (zipping if once else 0.0))


def kernels(
    cpu: CpuShape, shape: LinearShape, packing: LinearPacking, activation: str = "none"
) -> Iterator[Int8Kernel]:
    """Yield the kernels that a packing can have, those of fewer vectors of tokens first; one vector where not even that fits."""
    lines = lines_of(cpu)
    parts, whole = min(PARTS, shape.tokens // lines.lanes), shape.tiles % lines.tiles == 0
    several = [PARTS * n for n in range(2, MOST_LINES + 1) if whole and lines.count(shape.tiles) % n == 0]
    for vectors in (*(v for v in range(1, parts + 1) if parts % v == 0), *several):
        kernel = Int8Kernel(shape, packing, LinearDecisions(vectors), cpu.dot, lines, activation)
        if vectors == 1 or _fits(cpu, kernel):
            yield kernel


def _fits(cpu: CpuShape, kernel: Int8Kernel) -> bool:
    """Return whether a register block stays in registers.

    Beside the accumulators: what they are multiplied by, and the lines that it is made of. Of few rows LLVM makes that of a
    whole iteration ahead.
    """
    dot, rows, vectors = DOT_PRODUCTS[cpu.dot], kernel.packing.rows, kernel.decisions.vectors
    ahead = kernel.packing.unroll if rows <= FEW_ROWS else 1
    beside = vectors * dot.quads * ahead + (0 if kernel.zips_once else COLUMNS) + dot.temporaries
    return rows * vectors + beside < cpu.registers and rows * vectors <= (cpu.cost(INT8).held or cpu.registers)


@cache
def choose_int8_decisions(cpu: CpuShape, shape: LinearShape, packing: LinearPacking) -> LinearDecisions:
    """Return the cheapest register block for a packing and a number of tokens."""
    return min(kernels(cpu, shape, packing), key=lambda kernel: int8_cycles(cpu, kernel)).decisions


def int8_shape(cpu: CpuShape, matrix: MatrixShape, packing: LinearPacking, tiles: int) -> LinearShape:
    """Return the shape of a packed matrix for some token tiles."""
    kept, offsets = int8_kept(matrix.kept, DOT_PRODUCTS[cpu.dot], packing), offset_dtype(matrix.cols)
    return LinearShape(tiles, matrix.rows, matrix.cols, kept, matrix.group, offsets)


def split_lines(cpu: CpuShape, shape: LinearShape) -> list[LinearShape]:
    """Return the parts in which tiles are served: whole lines, and a rest that computes nothing for what fills up its line."""
    tiles = lines_of(cpu).tiles
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


def _cheapest(cpu: CpuShape, matrix: MatrixShape) -> tuple[float, LinearPacking]:
    tiles = FEATURE_MAJOR.tiles(TYPICAL_TOKENS)
    found = []
    for packing in int8_packings(cpu, matrix):
        shape = int8_shape(cpu, matrix, packing, tiles)
        best = min(int8_cycles(cpu, kernel) for kernel in kernels(cpu, shape, packing))
        lone = by_word(cpu, packing) * shape.kept / COLUMNS * shape.rows * tiles / lines_of(cpu).tiles
        found.append((best + lone, packing))
    return min(found, key=lambda pair: pair[0])


def by_word(cpu: CpuShape, packing: LinearPacking) -> float:
    """Return the cycles that a weight costs where it cannot be had as a lane of a vector."""
    words = packing.rows * packing.unroll * DOT_PRODUCTS[cpu.dot].quads
    return cpu.cost(INT8).load if cpu.by_lane and words % (cpu.vector_bytes // COLUMNS) else 0.0


@cache
def choose_int8_packing(cpu: CpuShape, matrix: MatrixShape) -> LinearPacking:
    """Return the cheapest packing of a matrix."""
    return _cheapest(cpu, matrix)[1]


@cache
def best_int8_cycles(cpu: CpuShape, matrix: MatrixShape) -> float:
    """Return the modelled cycles of a matrix at the typical number of tokens."""
    return _cheapest(cpu, matrix)[0]


def quantise_cycles(cpu: CpuShape, cols: int) -> float:
    """Return the modelled cycles of quantising the activations of a layer: two loads and four operations a vector."""
    cost, vectors = cpu.cost(INT8), cols * TYPICAL_TOKENS / lines_of(cpu).lanes
    return vectors * (2.0 * cost.load + 4.0 * cost.zip)
