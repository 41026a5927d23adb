"""Which packing and which register block a linear layer gets: a cost model in cycles, minimised over what is legal.

The model never says that keeping fewer columns costs more, and what is legal does not depend on how many are kept (but for
fewer than one column in 16); so the cost of the best choice falls with the density, and a matrix whose dense kernel is
cheaper takes that (``linear_cycles``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from typing import Self

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, FLOAT16, REAL, ElementType, FeatureMajor

TYPICAL_TOKENS = 128
"""Tokens that a packing is chosen for; it is the same for every length, so that weights are stored once."""

FMA_CHAINS = 8
"""Accumulators that hide the latency of a fused multiply-add: 4 cycles times 2 pipes on the cores we target."""

MAX_ROWS = 8
"""Rows of a register block: beyond, broadcasts of weights cost more than the shared X saves."""

L1_SHARE = 0.6
"""Part of the L1 data cache that X of a column block can have; the rest is for weights, tables and Y."""

L2_SHARE = 0.125
"""Part of the L2 cache that X of a column block can have: Y, weights and the next X pass through it too."""

MAX_TILES = 4
"""Token tiles of a register block. Where a tile is a multiple of 4 KiB, the lines of one feature in all tiles fall into one
set of the L1 cache, which has 4 to 12 ways; X and Y share them."""

ACCUMULATOR_CYCLES = 2.0
"""Reading and writing one accumulator when a register block goes on to the next column block."""

SMALL_FILE = 16
"""Vector registers of a small register file."""

LINE_BYTES = 64
"""A cache line."""

PADDING = 0.03
"""Part of the kept columns that may be zeros, so that the inner loop has whole iterations."""

LONGEST_SUM: dict[ElementType, int] = {FLOAT16: 256}
"""Products that may be summed in the element type itself: a column block of more of them is none.

Each addition rounds to 11 bits, which moves a sum of k products by 2^-11 sqrt(k) of its size: 1/128 at worst, before that
is averaged in float32 over blocks, rows and layers.
"""


@dataclass(frozen=True)
class MatrixShape:
    """A (rows, cols) matrix of which every group of ``group`` rows keeps ``kept`` columns; dense: one group that keeps all.

    ``quads``: whether columns are kept in fours, each from a multiple of four on.
    """

    rows: int
    cols: int
    kept: int
    group: int
    quads: bool = False

    @classmethod
    def dense_of(cls, rows: int, cols: int) -> Self:
        """Return a matrix of which nothing is cut."""
        return cls(rows, cols, cols, rows)

    @property
    def dense(self) -> bool:
        """Whether all rows share one list of columns."""
        return self.group == self.rows

    @property
    def single(self) -> Self:
        """The same without saying that columns are kept in quads."""
        return replace(self, quads=False)


@dataclass(frozen=True)
class LinearPacking:
    """How the weights of a linear layer lie in memory; the same for every sequence length.

    ``rows``: rows of a register block; ``column_blocks``: parts that the kept columns are cut into; ``unroll``: kept columns
    of one iteration of the inner loop, of which a column block holds a multiple.
    """

    rows: int
    column_blocks: int
    unroll: int = 1

    def __str__(self) -> str:
        return f"r{self.rows}b{self.column_blocks}u{self.unroll}"


@dataclass(frozen=True)
class LinearDecisions:
    """Decisions of a schedule.

    ``vectors``: vectors of tokens in a register block; ``groups``: register blocks worked on at once.
    """

    vectors: int
    groups: int = 1


@dataclass(frozen=True)
class LinearShape:
    """Sizes of one linear layer: ``kept`` columns a group of ``group`` rows, padded to equal column blocks.

    A kernel may serve a part of the token tiles: ``tiles`` of them from ``first`` on, of ``of`` in the buffers (0: all).
    ``quads``: whether it reads its input and its columns in fours.
    """

    tiles: int
    rows: int
    cols: int
    kept: int
    group: int
    offset_dtype: str = "uint16"
    first: int = 0
    of: int = 0
    layout: FeatureMajor = FEATURE_MAJOR
    quads: bool = False

    @property
    def buffer_tiles(self) -> int:
        """Token tiles of X and Y."""
        return self.of or self.tiles

    @property
    def tokens(self) -> int:
        """Tokens of its tiles."""
        return self.tiles * self.layout.token_tile

    @property
    def dense(self) -> bool:
        """Whether all rows share one table, so that nothing is skipped."""
        return self.group == self.rows

    def part(self, first: int, tiles: int) -> "LinearShape":
        """Return the shape of some of the token tiles."""
        return replace(self, tiles=tiles, first=first, of=self.tiles)


def padded_kept(kept: int, packing: LinearPacking) -> int:
    """Return ``kept`` rounded up to equal column blocks of whole iterations."""
    step = packing.column_blocks * packing.unroll
    return -(-kept // step) * step


def x_bytes(cpu: CpuShape, shape: LinearShape, packing: LinearPacking, decisions: LinearDecisions) -> float:
    """Return the bytes of X that a column block reads, over and over, for one block of tokens."""
    return float(cpu.vector_bytes) * decisions.vectors * shape.cols / packing.column_blocks


def linear_cycles(cpu: CpuShape, shape: LinearShape, packing: LinearPacking, decisions: LinearDecisions) -> float:
    """Return the modelled cycles of one call, weights in L2.

    Per kept column of a register block the multiply-adds and the loads overlap, though not perfectly (a cubic norm); a visit
    to a register block costs its accumulators.
    """
    element = shape.layout.element
    cost, rows, vectors = cpu.cost(element), packing.rows, decisions.vectors
    accumulators = rows * vectors
    beyond_l1 = max(0.0, 1.0 - L1_SHARE * cpu.l1d_bytes / x_bytes(cpu, shape, packing, decisions))
    line = cost.load + cost.l2_line * cpu.vector_bytes / LINE_BYTES * beyond_l1
    loads = vectors * line + rows * (cost.broadcast + cost.l2_line * element.bytes / LINE_BYTES) + cost.offset
    multiplies = accumulators * cost.fma * max(1.0, FMA_CHAINS / (accumulators * decisions.groups))
    column = (multiplies**3 + loads**3) ** (1 / 3) + cost.iteration / (packing.unroll * decisions.groups)
    real_accumulators = accumulators * REAL.bytes / element.bytes  # Y is real, so that is what a visit reads and writes
    visits = packing.column_blocks * (cost.visit + ACCUMULATOR_CYCLES * real_accumulators)
    blocks = shape.tokens / (vectors * cpu.lanes(element)) * (shape.rows / rows)
    return blocks * (shape.kept * column + visits)


def _vectors(cpu: CpuShape, rows: int, shape: LinearShape) -> Iterator[int]:
    """Yield the vectors of tokens that a register block can have."""
    lanes, tile = cpu.lanes(shape.layout.element), shape.layout.token_tile
    in_tile, held = max(1, tile // lanes), cpu.cost(shape.layout.element).held or 2 * cpu.registers
    for v in range(1, cpu.registers):
        # Accumulators, one X vector each (a single row reads X straight from memory), a broadcast.
        fits = (rows + (rows > 1)) * v + 1 < cpu.registers and (rows + 1) * v <= held
        aligned = (v % in_tile == 0 or in_tile % v == 0) and v * lanes <= MAX_TILES * tile
        if v == 1 or (fits and aligned and shape.tokens % (v * lanes) == 0):
            yield v


def _decisions(cpu: CpuShape, rows: int, shape: LinearShape) -> Iterator[LinearDecisions]:
    """Yield register blocks; as many at once as it takes to have enough chains, where they fit."""
    for v in _vectors(cpu, rows, shape):
        fits = max(1, (cpu.registers - 2) // (rows * v))
        wanted = min(fits, -(-FMA_CHAINS // (rows * v)))
        yield LinearDecisions(v, largest_divisor(shape.rows // rows, wanted))


def largest_divisor(n: int, limit: int) -> int:
    """Return the largest divisor of ``n`` up to ``limit``, at least 1."""
    return next(d for d in range(max(1, min(n, limit)), 0, -1) if n % d == 0)


def _unroll(cpu: CpuShape, layout: FeatureMajor, kept: int, blocks: int, rows: int) -> int:
    """Return the kept columns of an iteration: a cache line of weights, or what can be padded cheaply.

    Of few rows the columns are few too, for X takes the registers: two, or what fills a vector of weights that are used by
    lane. With 16 registers one vector of weights is all that there is room for.
    """
    line, vector = LINE_BYTES // layout.element.bytes, cpu.lanes(layout.element) if cpu.by_lane else 1
    few = 2
    if cpu.by_lane and cpu.registers <= SMALL_FILE:
        line = vector
    else:
        few = max(few, vector // rows)
    unroll = max(1, line // rows) if rows > 2 else few
    whole = vector // gcd(vector, rows)  # columns whose weights are whole vectors: others cannot be used by lane
    if layout.element is not REAL:
        unroll = max(whole, unroll // whole * whole)
    while unroll > 1 and padded_kept(kept, LinearPacking(rows, blocks, unroll)) > max(kept + 1, kept * (1 + PADDING)):
        unroll //= 2
    return unroll


def typical_shape(matrix: MatrixShape, packing: LinearPacking, layout: FeatureMajor = FEATURE_MAJOR) -> LinearShape:
    """Return the shape of a packed matrix at the number of tokens that packings are chosen for."""
    kept = padded_kept(matrix.kept, packing)
    return LinearShape(layout.tiles(TYPICAL_TOKENS), matrix.rows, matrix.cols, kept, matrix.group, layout=layout)


@cache
def choose_packing(cpu: CpuShape, matrix: MatrixShape, layout: FeatureMajor = FEATURE_MAJOR) -> LinearPacking:
    """Return the cheapest packing of a matrix."""
    best: tuple[float, int] = (float("inf"), 0)
    line = LINE_BYTES // layout.element.bytes
    packings = [
        LinearPacking(r, blocks, _unroll(cpu, layout, matrix.kept, blocks, r))
        for r in range(1, MAX_ROWS + 1)
        if matrix.group % r == 0 and (r == 1 or r * 2 <= cpu.registers)
        for blocks in range(1, min(matrix.kept, max(1, matrix.cols // line)) + 1)
    ]
    longest = LONGEST_SUM.get(layout.element)
    packings = [p for p in packings if longest is None or padded_kept(matrix.kept, p) <= longest * p.column_blocks]
    for i, packing in enumerate(packings):
        shape = typical_shape(matrix, packing, layout)
        for d in _decisions(cpu, packing.rows, shape):
            if x_bytes(cpu, shape, packing, d) <= max(cpu.l1d_bytes, L2_SHARE * cpu.l2_bytes):
                best = min(best, (linear_cycles(cpu, shape, packing, d), i))
    return packings[best[1]]


def best_cycles(cpu: CpuShape, matrix: MatrixShape, layout: FeatureMajor = FEATURE_MAJOR) -> float:
    """Return the modelled cycles of a matrix at the typical number of tokens, with the best packing and decisions."""
    packing = choose_packing(cpu, matrix, layout)
    shape = typical_shape(matrix, packing, layout)
    return linear_cycles(cpu, shape, packing, choose_decisions(cpu, shape, packing))


def conversion_cycles(cpu: CpuShape, cols: int, element: ElementType) -> float:
    """Return the modelled cycles of bringing the activations of a layer into the layout that it multiplies in."""
    if element is REAL:
        return 0.0
    cost, narrowed = cpu.cost(element), REAL.bytes / element.bytes
    vectors = cols * TYPICAL_TOKENS / cpu.lanes(element)
    return vectors * (narrowed * (cost.load + cost.fma) + cost.load)


def sparse_pays(cpu: CpuShape, matrix: MatrixShape, layout: FeatureMajor = FEATURE_MAJOR) -> bool:
    """Return whether the sparse kernel is modelled to be faster than the dense one."""
    dense = MatrixShape.dense_of(matrix.rows, matrix.cols)
    return best_cycles(cpu, matrix, layout) < best_cycles(cpu, dense, layout)


def split_tiles(cpu: CpuShape, shape: LinearShape, packing: LinearPacking) -> list[LinearShape]:
    """Return the parts in which tiles are served: whole register blocks and a rest, where that is cheaper than one kernel."""
    whole = shape.tiles // MAX_TILES * MAX_TILES
    if not 0 < whole < shape.tiles:
        return [shape]
    parts = [shape.part(0, whole), shape.part(whole, shape.tiles - whole)]

    def cycles(part: LinearShape) -> float:
        return linear_cycles(cpu, part, packing, choose_decisions(cpu, part, packing))

    return parts if sum(map(cycles, parts)) < cycles(shape) else [shape]


@cache
def choose_decisions(cpu: CpuShape, shape: LinearShape, packing: LinearPacking) -> LinearDecisions:
    """Return the cheapest register block for a packing and a number of tokens."""
    return min(_decisions(cpu, packing.rows, shape), key=lambda d: linear_cycles(cpu, shape, packing, d))
