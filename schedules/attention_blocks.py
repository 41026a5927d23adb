"""Register blocks of attention: how many keys, features and queries are summed in registers at a time, by core."""

from dataclasses import dataclass

from rt3_tvm.schedules.attention_shape import MOST_PARTS, AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FLOAT16, INT8, REAL, ElementType
from rt3_tvm.schedules.linear_decisions import SMALL_FILE, largest_divisor

ACCUMULATORS, FEW_ACCUMULATORS = 16, 8
"""Vectors of a register block where there are 32 registers, and where there are 16."""
UNROLLED = 16
"""Features of a score, and keys of a context, of an iteration; more and LLVM would keep all of K in registers."""


@dataclass(frozen=True)
class AttentionBlocks:
    """Sizes of the register blocks of one kernel.

    Parameters
    ----------
    keys, queries
        Of a block of scores; a task has ``queries``, or those of a token tile where that are more.
    features, mixed
        Of a block of the context: features and queries.
    unrolled
        The most features, or keys, that an iteration sums over.
    weights, rows
        Queries and keys whose weights an iteration computes.
    """

    keys: int = 4
    queries: int = 16
    features: int = 4
    mixed: int = 16
    unrolled: int = UNROLLED
    weights: int = 16
    rows: int = 1

    def tiles(self, tile: int) -> int:
        """Return the token tiles of a task."""
        return max(1, self.queries // tile)

    @classmethod
    def of(cls, shape: AttentionShape, cpu: CpuShape) -> "AttentionBlocks":
        """Return the blocks for a core.

        Sixteen multiply-adds of scores need two vectors of queries and two of keys, four of one and one of the other would be
        five. A vector that is a whole tile finds its second in the next tile, where there is one. Values are read
        by key, which are the lanes of their vectors: there more queries need fewer loads. 32-bit ARM takes no lanes, and has no
        registers for the addresses of what is unrolled. In-order cores lay iterations of weights over each other.
        """
        tile = shape.layout.token_tile
        lanes = min(cpu.lanes(shape.element), tile)
        few = cpu.registers <= SMALL_FILE
        held, small = FEW_ACCUMULATORS if few else ACCUMULATORS, cpu.by_lane and few
        queries = tile if small else min(2 * lanes, 2 * tile if shape.tiles[0] % 2 == 0 else tile)
        mixed = max(queries, min(tile, 4 * lanes))
        own = max(queries, tile)
        if cpu.cost(shape.element).held:
            own = lanes if small else 2 * cpu.lanes(REAL)
        return cls(
            keys=largest_divisor(tile, held * lanes // queries),
            queries=queries,
            features=largest_divisor(shape.v_dim, held * lanes // mixed),
            mixed=mixed,
            unrolled=1 if small else UNROLLED if shape.element is REAL else lanes,
            weights=own,
        )


def attention_element(shape: AttentionShape, cpu: CpuShape, asked: ElementType) -> ElementType:
    """Return what attention multiplies where a level multiplies ``asked``: float16 at one of int8, where it is faster.

    int8 keeps too few bits of a query for what is exponentiated. A level of float16 keeps float32: its outputs are held to
    PyTorch as a whole, and the layers of a model that was trained use that up by themselves. A head whose features are cut into
    more than ``MOST_PARTS`` sums stays float32. Biases, soft caps and masks are float32 in either.
    """
    if asked is not INT8 or FLOAT16 not in cpu.elements or shape.dim > MOST_PARTS * shape.longest_score:
        return REAL
    return min((REAL, FLOAT16), key=lambda element: attention_cycles(shape, cpu, element))


def attention_cycles(shape: AttentionShape, cpu: CpuShape, element: ElementType) -> float:
    """Return the cycles of what differs between element types: multiply-adds, and conversions of what is float32."""
    tile, heads = shape.layout.token_tile, shape.batch * shape.heads
    products, lanes = shape.flops / 2, cpu.lanes(element)
    multiplied = products / lanes * cpu.cost(element).fma
    if element is REAL:
        return multiplied
    (tiles, key_tiles), scores = shape.tiles, heads * shape.hides.pairs * tile**2
    narrowed = heads * tile * (key_tiles * (shape.dim + shape.v_dim) + tiles * shape.dim)
    sums = scores * shape.dim // shape.longest_score + scores * shape.v_dim // (shape.span() * tile)
    return multiplied + (narrowed + scores + 2 * sums) / cpu.lanes(REAL) * cpu.cost(REAL).fma
