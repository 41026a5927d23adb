"""Patterns: cutting a set from a matrix, assigning its patterns to blocks, and the mask that follows.

A block row first loses whole columns (block pruning); what it keeps, put side by side, are its *compacted* columns.
Patterns are cut in those coordinates. Source of the method: RT3, DAC 2021, arXiv 2102.06336; block pruning: arXiv 2009.08065.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

from rt3_tvm import rt3
from rt3_tvm.errors import Rt3Error

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

SCORED_BLOCKS = 4096
"""Blocks whose scores are in memory at once, one for each pattern."""
REFINEMENTS = 6
"""Rounds of assign-and-recut when a set is cut: as in k-means, the first ones move most."""
QUAD = 4
"""Adjacent columns that one dot product of int8 multiplies."""


@dataclass(frozen=True)
class PatternShape:
    """Shape of a block and how its rows are grouped.

    Parameters
    ----------
    rows, cols
        Size of a block; ``cols`` counts compacted columns.
    group
        V: consecutive rows that keep the same columns. Divides ``rows``.
    adjacent
        Columns beside each other, from a multiple of it on, that are kept or cut together: 1, or 4 for quads. Divides ``cols``.
    """

    rows: int
    cols: int
    group: int
    adjacent: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.group) < 1:
            raise Rt3Error(
                f"pattern shape {self.rows}x{self.cols} with group {self.group}: every size must be at least 1"
            )
        if self.rows % self.group:
            raise Rt3Error(
                f"group {self.group} does not divide the {self.rows} rows of a pattern: choose one of "
                + ", ".join(str(d) for d in range(1, self.rows + 1) if self.rows % d == 0)
            )
        if self.adjacent not in (1, QUAD):
            raise Rt3Error(
                f"pattern shape {self}: columns are kept one by one or in quads, not {self.adjacent} together"
            )
        if self.cols % self.adjacent:
            raise Rt3Error(
                f"pattern shape {self}: its {self.cols} columns are no whole quads: choose a multiple of {QUAD}"
            )

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}{'q' if self.adjacent == QUAD else ''}"

    def fitted(self, rows: int, cols: int) -> "PatternShape":
        """Return the shape for a (rows, cols) matrix.

        It has the largest group up to V that divides the rows, and whole groups a block; single columns where ``cols`` are no
        whole quads.
        """
        group = next(g for g in range(self.group, 0, -1) if rows % g == 0)
        adjacent = self.adjacent if cols % self.adjacent == 0 else 1
        return PatternShape(max(group, self.rows // group * group), self.cols, group, adjacent)


@dataclass(frozen=True, eq=False)
class PatternSet:
    """K patterns of one shape and one density, for one matrix at one level.

    ``columns`` (K, rows / group, kept): ascending compacted columns within a block that a group keeps.
    """

    shape: PatternShape
    columns: Ints

    @property
    def kept(self) -> int:
        """Kept columns of every group in a block."""
        return int(self.columns.shape[2])

    @property
    def density(self) -> float:
        """Part of a block that is kept."""
        return self.kept / self.shape.cols


def as_matrix(stored: Floats, transposed: bool = False) -> Floats:
    """Return a weight as (rows, cols) of the form in which a model stores it.

    Its first axis is one side, the others are the other one together: kernels of convolutions, projections to heads and of
    them. ``transposed``: the first axis is the columns.
    """
    flat = stored.reshape(len(stored), -1)
    return flat.T if transposed else flat


@dataclass(frozen=True, eq=False)
class Backbone:
    """What block pruning leaves of a matrix: ``columns`` (block rows, kept columns), ascending, of each block row.

    ``shape`` is (rows, cols), outputs by inputs; ``transposed``: the model stores the weight as (cols, rows). ``table`` (cols,):
    an order of its columns in which quads are four after the other; ``columns`` are places in it then.
    """

    shape: tuple[int, int]
    block_rows: int
    columns: Ints
    transposed: bool = False
    table: Ints | None = None

    def placed(self, weight: Floats) -> Floats:
        """Return a weight (rows, cols) with its columns in the order of the table."""
        return weight if self.table is None else weight[:, self.table]

    def columns_at(self, places: Ints) -> Ints:
        """Return which columns lie at some places."""
        return places if self.table is None else self.table[places]

    def oriented(self, weight: Floats) -> Floats:
        """Return a weight that the model stores as (rows, cols)."""
        return as_matrix(weight, self.transposed)

    def stored(self, matrix: Floats | Bools, shape: tuple[int, ...] = ()) -> Floats | Bools:
        """Return a matrix (rows, cols) as the model stores the weight, there of ``shape`` where it has more than two axes."""
        own = matrix.T if self.transposed else matrix
        return own.reshape(shape) if shape else own

    @property
    def density(self) -> float:
        """Part of the matrix that is kept."""
        return self.columns.shape[1] / self.shape[1]

    def mask(self) -> Bools:
        """Return which weights are kept, (rows, cols)."""
        kept = np.zeros((len(self.columns), self.shape[1]), dtype=np.bool_)
        np.put_along_axis(kept, self.columns_at(self.columns).astype(np.int64), True, axis=1)
        return np.repeat(kept, self.block_rows, axis=0)[: self.shape[0]]


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """One matrix at one level: its backbone, its pattern set and the ``assignment`` (block rows, block columns)."""

    backbone: Backbone
    patterns: PatternSet
    assignment: Ints

    def group_columns(self) -> tuple[Ints, Bools]:
        """Return the kept columns of every group of rows.

        Returns
        -------
        columns
            (rows / group, n) columns of the matrix, ascending among the valid ones.
        valid
            (rows / group, n); a position that falls on the padding of the last block is not.
        """
        places, valid = self.group_places()
        if self.backbone.table is None:
            return places, valid
        columns = self.backbone.columns_at(places)
        order = np.argsort(np.where(valid, columns, self.backbone.shape[1]), axis=1, kind="stable")
        return np.take_along_axis(columns, order, axis=1), np.take_along_axis(valid, order, axis=1)

    def group_places(self) -> tuple[Ints, Bools]:
        """Return the same as places in the order of the backbone's table, which quads are four after the other of."""
        rows, shape = self.backbone.shape[0], self.patterns.shape
        pad_rows, pad_cols = _blocks(self.backbone, shape)
        chosen = self.patterns.columns[self.assignment]  # (block rows, block cols, groups, kept)
        starts = np.arange(pad_cols, dtype=np.int32) * shape.cols
        compact = chosen + starts[None, :, None, None]
        compact = compact.transpose(0, 2, 1, 3).reshape(pad_rows * shape.rows // shape.group, -1)
        compact = compact[: rows // shape.group]
        width = self.backbone.columns.shape[1]
        valid = compact < width
        row_of_group = np.arange(rows // shape.group) * shape.group // self.backbone.block_rows
        places = self.backbone.columns[row_of_group[:, None], np.where(valid, compact, 0)]
        return places.astype(np.int32), valid

    def mask(self) -> Bools:
        """Return which weights are kept, (rows, cols)."""
        rows, cols = self.backbone.shape
        group = self.patterns.shape.group
        columns, valid = self.group_columns()
        mask = np.zeros((rows // group, cols), dtype=np.bool_)
        index = np.broadcast_to(np.arange(rows // group)[:, None], columns.shape)
        mask[index[valid], columns[valid]] = True
        return np.repeat(mask, group, axis=0)

    def masked(self, weight: Floats) -> Floats:
        """Return a weight, as the model stores it, with what is not kept set to zero."""
        return weight * self.backbone.stored(self.mask(), weight.shape)

    @property
    def density(self) -> float:
        """Part of the matrix that is kept, counted."""
        _, valid = self.group_columns()
        rows, cols = self.backbone.shape
        return float(valid.sum()) * self.patterns.shape.group / (rows * cols)


def _blocks(backbone: Backbone, shape: PatternShape) -> tuple[int, int]:
    """Return the rows and columns of pattern blocks that cover a backbone."""
    return ceil(backbone.shape[0] / shape.rows), ceil(backbone.columns.shape[1] / shape.cols)


def cut_backbone(
    weight: Floats,
    sparsity: float,
    block_rows: int,
    transposed: bool = False,
    rng: np.random.Generator | None = None,
    adjacent: int = 1,
    table: Ints | None = None,
) -> Backbone:
    """Return the backbone: in every block row the columns of the largest norm.

    Parameters
    ----------
    weight
        (rows, cols).
    sparsity
        Part of the columns that each block row loses, in [0, 1).
    block_rows
        Rows of a block; the last block row may have fewer.
    transposed
        Whether the model stores the transpose of ``weight``.
    rng
        Takes columns at random instead, to compare with.
    adjacent
        Columns that are kept or cut together: what patterns of such a shape are cut from. Divides ``cols``.
    table
        An order of the columns, see :class:`Backbone`.
    """
    rows, cols = weight.shape
    weight = weight if table is None else weight[:, table]
    kept = max(1, round(cols // adjacent * (1.0 - sparsity))) * adjacent
    starts = np.arange(0, rows, block_rows)
    energy = np.add.reduceat(np.square(weight, dtype=np.float64), starts, axis=0)  # (block rows, cols)
    energy = energy if rng is None else rng.random(energy.shape)
    return Backbone((rows, cols), block_rows, _largest(energy, kept, adjacent), transposed, table)


def block_importance(
    weight: Floats, backbone: Backbone, shape: PatternShape, power: int = 2
) -> npt.NDArray[np.float64]:
    """Return the sum of |w|^power over each group and compacted column, padded with zeros.

    Returns
    -------
    importance
        (block rows, block cols, groups, cols) of pattern blocks.
    """
    rows, _ = weight.shape
    pad_rows, pad_cols = _blocks(backbone, shape)
    size = np.abs(backbone.placed(weight), dtype=np.float64)
    sums = np.power(size, power).reshape(rows // shape.group, shape.group, -1).sum(1)
    row_of_group = np.arange(rows // shape.group) * shape.group // backbone.block_rows
    sums = np.take_along_axis(sums, backbone.columns[row_of_group].astype(np.int64), axis=1)
    groups = shape.rows // shape.group
    padded = np.zeros((pad_rows * groups, pad_cols * shape.cols))
    padded[: sums.shape[0], : sums.shape[1]] = sums
    return padded.reshape(pad_rows, groups, pad_cols, shape.cols).transpose(0, 2, 1, 3)


def _largest(energy: npt.NDArray[np.float64], kept: int, adjacent: int = 1) -> Ints:
    """Return the ascending columns of the ``kept`` largest energies along the last axis, so many at a time."""
    leading = energy.shape[:-1]
    together = energy.reshape(*leading, -1, adjacent).sum(-1)
    first = np.sort(np.argsort(-together, axis=-1, kind="stable")[..., : kept // adjacent], axis=-1) * adjacent
    return (first[..., None] + np.arange(adjacent)).reshape(*leading, kept).astype(np.int32)


def assign(energy: npt.NDArray[np.float64], columns: Ints) -> Ints:
    """Return for each block the pattern with the smallest ||W - W*P||, that is, the largest kept energy.

    ``energy`` (block rows, block cols, groups, cols), ``columns`` (K, groups, kept).
    """
    patterns = np.zeros((columns.shape[0], *energy.shape[2:]))
    np.put_along_axis(patterns, columns.astype(np.int64), 1.0, axis=2)
    patterns = patterns.reshape(len(columns), -1)
    blocks = energy.reshape(-1, patterns.shape[1])
    chosen = [(blocks[i : i + SCORED_BLOCKS] @ patterns.T).argmax(axis=1) for i in range(0, len(blocks), SCORED_BLOCKS)]
    return np.concatenate(chosen).astype(np.int32).reshape(energy.shape[:2])


def _kept_columns(width: int, shape: PatternShape, density: float, at_most: bool) -> int:
    """Return the kept columns of a block that bring a row closest to ``density``; the last block may be narrower."""
    blocks, last = divmod(width, shape.cols)
    wanted = density * width

    def kept_of(kept: int) -> int:
        return blocks * kept + min(kept, last)

    fewest = shape.adjacent
    legal = range(fewest, shape.cols + 1, fewest)
    fitting = [k for k in legal if not at_most or kept_of(k) <= wanted + 1e-6 * width] or [fewest]
    return min(fitting, key=lambda kept: (abs(kept_of(kept) - wanted), kept))


EACH_BLOCK = 2**31 - 1
"""As many patterns as blocks: more than any matrix has."""


@dataclass(frozen=True)
class PatternRecipe:
    """How a pattern set is cut from a matrix.

    Parameters
    ----------
    shape, count
        Shape of the patterns, and K: how many; a matrix with fewer blocks has one for each.
    start
        Where the patterns come from: ``blocks``, the best pattern of K sampled blocks; ``maps``, the most important of RT3's
        importance maps, each the sum of |w| over a few sampled blocks; ``random``, any positions.
    refinements
        Rounds in which every block takes its best pattern and each pattern is cut anew from the energy of its blocks, as in
        k-means.
    at_most
        Whether rounding to whole columns of a block may never exceed the density that was asked for.
    """

    shape: PatternShape
    count: int
    start: Literal["blocks", "maps", "random"] = "blocks"
    refinements: int = REFINEMENTS
    at_most: bool = False
    seed: int = 0


def most_kept(backbone: Backbone, recipe: PatternRecipe, density: float) -> float:
    """Return the part of a matrix that a recipe keeps at a density within the backbone, before anything is cut.

    Patterns that several blocks share may put positions on the padding of the last block; then it is less.
    """
    width = backbone.columns.shape[1]
    kept = _kept_columns(width, recipe.shape, density, recipe.at_most)
    blocks, last = divmod(width, recipe.shape.cols)
    return (blocks * kept + min(kept, last)) / backbone.shape[1]


def cut_patterns(weight: Floats, backbone: Backbone, recipe: PatternRecipe, density: float) -> SparseMatrix:
    """Cut a pattern set from a matrix and assign it: each block takes the pattern that keeps most of its energy.

    Parameters
    ----------
    weight
        (rows, cols).
    backbone
        Cut for the same number of adjacent columns.
    density
        Part of the backbone's columns that each group keeps, in (0, 1].
    """
    shape = recipe.shape
    kept = _kept_columns(backbone.columns.shape[1], shape, density, recipe.at_most)
    energy = block_importance(weight, backbone, shape)
    blocks = energy.reshape(-1, *energy.shape[2:])  # (blocks, groups, cols)
    rng = np.random.default_rng(recipe.seed)
    if recipe.count >= len(blocks) and recipe.start != "random":  # each block has its own best pattern
        columns = _largest(blocks, kept, shape.adjacent)
        assignment = np.arange(len(blocks), dtype=np.int32).reshape(energy.shape[:2])
        return SparseMatrix(backbone, PatternSet(shape, columns), assignment)
    count = min(recipe.count, len(blocks))
    if recipe.start == "random":
        columns = _largest(rng.random((count, *blocks.shape[1:])), kept, shape.adjacent)
    elif recipe.start == "maps":
        magnitude = block_importance(weight, backbone, shape, power=1).reshape(blocks.shape)
        columns = _map_patterns(magnitude, kept, count, shape.adjacent, rng)
    else:
        sampled = blocks[rng.choice(len(blocks), size=count, replace=False)]
        columns = _largest(sampled, kept, shape.adjacent)
    for _ in range(recipe.refinements if kept < shape.cols else 0):
        flat = assign(energy, columns).reshape(-1)
        sums = np.zeros((len(columns), *blocks.shape[1:]))
        np.add.at(sums, flat, blocks)
        used = np.bincount(flat, minlength=len(columns)) > 0
        columns[used] = _largest(sums[used], kept, shape.adjacent)
    return SparseMatrix(backbone, PatternSet(shape, columns), assign(energy, columns))


def _map_patterns(
    magnitude: npt.NDArray[np.float64], kept: int, count: int, adjacent: int, rng: np.random.Generator
) -> Ints:
    """Return the patterns of the ``count`` most important of RT3's maps; ``magnitude`` (blocks, groups, cols) sums |w|."""
    maps = max(rt3.LEAST_MAPS, 2 * count)
    sampled = rng.integers(len(magnitude), size=(maps, min(rt3.MAP_BLOCKS, len(magnitude))))
    sums = magnitude[sampled].sum(1)  # (maps, groups, cols)
    columns = _largest(sums, kept, adjacent)
    importance = np.take_along_axis(sums, columns.astype(np.int64), axis=2).sum((1, 2))
    return columns[np.argsort(-importance, kind="stable")[:count]]
