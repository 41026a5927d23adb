"""What one-shot pruning is asked for."""

from dataclasses import dataclass
from itertools import pairwise

from rt3_tvm.device import check_frequencies
from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import FREQUENCIES, NUMBER, PATTERNS, SHAPE, TEXT, WHOLE, documented, numbers, option, switch
from rt3_tvm.pattern import PatternShape


@documented
@dataclass(frozen=True)
class PruneOptions:
    """What one-shot pruning is asked for."""

    sparsity: tuple[float, ...] = option(
        (0.5, 0.75, 0.9), numbers("one sparsity per level", "S,S,S"), "one per level, ascending, in [0, 1)"
    )
    block_sparsity: float = option(
        0.0,
        NUMBER.called("S"),
        "part of its columns that each block row loses for the backbone, in [0, 1); no level can be denser",
    )
    shape: PatternShape = option(
        PatternShape(4, 32, 4),
        SHAPE,
        "of a pattern; a group shrinks where it does not divide the rows. 4x32q: columns are kept in quads, four beside each "
        "other, the fastest form for int8; a matrix whose columns are no whole quads keeps single ones. Of a block whole quads "
        "are kept: of 4x32q eighths",
        name="pattern-shape",
    )
    patterns: int = option(256, PATTERNS, "patterns in a set; each: one for each block")
    block_rows: int = option(128, WHOLE.called("R"), "rows of a block in block pruning")
    exclude: tuple[str, ...] = option((), TEXT.called("GLOB"), "weights that stay dense; repeatable", repeated=True)
    embeddings: bool = switch(False, "prune the tables that tokens look up too, as RT3 does with its language model")
    order_columns: bool = switch(
        False,
        "with quads: four columns that rows keep together wherever they are, by an order for each tensor that layers read; "
        "keeps more at no cost",
    )
    frequencies: tuple[float, ...] | None = option(
        None,
        FREQUENCIES,
        "of the levels, descending, kept in the checkpoint; default none, rt3 compile chooses",
        name="freqs",
    )
    seed: int = option(0, WHOLE, "of everything that is drawn")

    def __post_init__(self) -> None:
        if not self.sparsity:
            raise Rt3Error("no `sparsity`: give one per level, for example 0.5,0.75,0.9")
        for s in (*self.sparsity, self.block_sparsity):
            if not 0.0 <= s < 1.0:
                raise Rt3Error(f"`sparsity` {s:g} is outside [0, 1)")
        if any(a >= b for a, b in pairwise(self.sparsity)):
            raise Rt3Error(
                f"`sparsity` {','.join(f'{s:g}' for s in self.sparsity)}: give the levels ascending, each once"
            )
        if self.block_sparsity > self.sparsity[0]:
            raise Rt3Error(
                f"`block_sparsity` {self.block_sparsity:g} exceeds the first level's sparsity {self.sparsity[0]:g}: "
                "the backbone must hold every level"
            )
        if self.frequencies is not None:
            check_frequencies(self.frequencies, len(self.sparsity))
        if self.order_columns and self.shape.adjacent == 1:
            raise Rt3Error(f"`order_columns` with `shape` {self.shape}: only quads have an order: give {self.shape}q")
        if self.patterns < 1 or self.block_rows < 1:
            raise Rt3Error(f"`patterns` {self.patterns} and `block_rows` {self.block_rows} must be at least 1")
        if self.block_rows % self.shape.group:
            raise Rt3Error(f"`block_rows` {self.block_rows} must be a multiple of the group {self.shape.group}")
