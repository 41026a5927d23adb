"""Register blocks of attention: how many keys, features and queries are summed in registers at a time, by core."""

from dataclasses import dataclass

from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_decisions import SMALL_FILE, largest_divisor

ACCUMULATORS, FEW_ACCUMULATORS = 16, 8
"""Vectors of a register block where there are 32 registers, and where there are 16."""
UNROLLED = 16
"""Features of a score, and keys of a context, that an iteration has."""


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

        Two vectors of queries by twice a vector of keys need the fewest loads for 16 multiply-adds: two by two, where four
        vectors of queries and one of keys were five. A vector that is a whole tile finds its second in the next tile, where there
        is one. Values are read by key, which are the lanes of their vectors, so that more queries need fewer of those.
        """
        tile, lanes = shape.layout.token_tile, cpu.lanes(shape.layout.element)
        held = ACCUMULATORS if cpu.registers > SMALL_FILE else FEW_ACCUMULATORS
        queries = min(2 * lanes, 2 * tile if shape.tiles[0] % 2 == 0 else tile)
        small = cpu.by_lane and cpu.registers <= SMALL_FILE
        if small:
            queries = tile
        mixed = max(queries, min(tile, 4 * lanes))
        keys = largest_divisor(tile, held * lanes // queries)
        return cls(keys, queries, largest_divisor(shape.v_dim, held * lanes // mixed), mixed, 1 if small else UNROLLED, (2 * lanes if cpu.registers > SMALL_FILE else lanes) if cpu.cost(shape.layout.element).held else tile)

