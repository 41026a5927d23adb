"""Patterns: cutting a set from a matrix, assigning its patterns to blocks, and the mask that follows.

A block row first loses whole columns (block pruning); what it keeps, put side by side, are its *compacted* columns.
Patterns are cut in those coordinates. Source of the method: RT3, DAC 2021, arXiv 2102.06336; block pruning: arXiv 2009.08065.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from rt3_tvm.errors import Rt3Error

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

REFINEMENTS = 6
"""Rounds of assign-and-recut when a set is cut: as in k-means, the first ones move most."""


@dataclass(frozen=True)
class PatternShape:
    """Shape of a block and how its rows are grouped.

    Parameters
    ----------
    rows, cols
        Size of a block; ``cols`` counts compacted columns.
    group
        V: consecutive rows that keep the same columns. Divides ``rows``.
    """

    rows: int
    cols: int
    group: int

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

    def fitted(self, rows: int) -> "PatternShape":
        """Return the shape for a matrix of ``rows`` rows: the largest group up to V that divides it, and whole groups a block."""
        group = next(g for g in range(self.group, 0, -1) if rows % g == 0)
        return PatternShape(max(group, self.rows // group * group), self.cols, group)


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


@dataclass(frozen=True, eq=False)
class Backbone:
    """What block pruning leaves of a matrix: ``columns`` (block rows, kept columns), ascending, of each block row.

    ``shape`` is (rows, cols), outputs by inputs; ``transposed``: the model stores the weight as (cols, rows).
    """

    shape: tuple[int, int]
    block_rows: int
    columns: Ints
    transposed: bool = False

    def oriented(self, weight: Floats) -> Floats:
        """Return a weight that the model stores as (rows, cols)."""
        return weight.T if self.transposed else weight

    @property
    def density(self) -> float:
        """Part of the matrix that is kept."""
        return self.columns.shape[1] / self.shape[1]


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
        columns = self.backbone.columns[row_of_group[:, None], np.where(valid, compact, 0)]
        return columns.astype(np.int32), valid

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
        mask = self.mask()
        return weight * (mask.T if self.backbone.transposed else mask)

    @property
    def density(self) -> float:
        """Part of the matrix that is kept, counted."""
        _, valid = self.group_columns()
        rows, cols = self.backbone.shape
        return float(valid.sum()) * self.patterns.shape.group / (rows * cols)


def _blocks(backbone: Backbone, shape: PatternShape) -> tuple[int, int]:
    """Return the rows and columns of pattern blocks that cover a backbone."""
    return ceil(backbone.shape[0] / shape.rows), ceil(backbone.columns.shape[1] / shape.cols)


def cut_backbone(weight: Floats, sparsity: float, block_rows: int, transposed: bool = False) -> Backbone:
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
    """
    rows, cols = weight.shape
    kept = max(1, round(cols * (1.0 - sparsity)))
    starts = np.arange(0, rows, block_rows)
    energy = np.add.reduceat(np.square(weight, dtype=np.float64), starts, axis=0)  # (block rows, cols)
    order = np.argsort(-energy, axis=1, kind="stable")[:, :kept]
    return Backbone((rows, cols), block_rows, np.sort(order, axis=1).astype(np.int32), transposed)


def _block_energy(weight: Floats, backbone: Backbone, shape: PatternShape) -> npt.NDArray[np.float64]:
    """Return the energy of each group and compacted column, (block rows, block cols, groups, cols), padded with zeros."""
    rows, _ = weight.shape
    pad_rows, pad_cols = _blocks(backbone, shape)
    energy = np.square(weight, dtype=np.float64).reshape(rows // shape.group, shape.group, -1).sum(1)
    row_of_group = np.arange(rows // shape.group) * shape.group // backbone.block_rows
    energy = np.take_along_axis(energy, backbone.columns[row_of_group].astype(np.int64), axis=1)
    groups = shape.rows // shape.group
    padded = np.zeros((pad_rows * groups, pad_cols * shape.cols))
    padded[: energy.shape[0], : energy.shape[1]] = energy
    return padded.reshape(pad_rows, groups, pad_cols, shape.cols).transpose(0, 2, 1, 3)


def _largest(energy: npt.NDArray[np.float64], kept: int) -> Ints:
    """Return the ascending columns of the ``kept`` largest energies along the last axis."""
    return np.sort(np.argsort(-energy, axis=-1, kind="stable")[..., :kept], axis=-1).astype(np.int32)


def assign(energy: npt.NDArray[np.float64], columns: Ints) -> Ints:
    """Return for each block the pattern with the smallest ||W - W*P||, that is, the largest kept energy.

    ``energy`` (block rows, block cols, groups, cols), ``columns`` (K, groups, kept).
    """
    patterns = np.zeros((columns.shape[0], *energy.shape[2:]))
    np.put_along_axis(patterns, columns.astype(np.int64), 1.0, axis=2)
    score = energy.reshape(-1, energy.shape[2] * energy.shape[3]) @ patterns.reshape(len(columns), -1).T
    return score.argmax(axis=1).astype(np.int32).reshape(energy.shape[:2])


def _kept_columns(width: int, cols: int, density: float) -> int:
    """Return the kept columns of a block that bring a row closest to ``density``; the last block may be narrower."""
    blocks, last = divmod(width, cols)
    wanted = density * width
    return min(range(1, cols + 1), key=lambda kept: (abs(blocks * kept + min(kept, last) - wanted), kept))


def cut_patterns(
    weight: Floats, backbone: Backbone, shape: PatternShape, density: float, count: int, seed: int = 0
) -> SparseMatrix:
    """Cut a pattern set from a matrix by magnitude and assign it.

    Starts from the best patterns of sampled blocks; then assigns every block and recuts each pattern from the summed
    energy of its blocks, as in k-means.

    Parameters
    ----------
    weight
        (rows, cols).
    density
        Part of the backbone's columns that each group keeps, in (0, 1].
    count
        K, patterns in the set; fewer when the matrix has fewer blocks.
    """
    kept = _kept_columns(backbone.columns.shape[1], shape.cols, density)
    energy = _block_energy(weight, backbone, shape)
    blocks = energy.reshape(-1, *energy.shape[2:])  # (blocks, groups, cols)
    rng = np.random.default_rng(seed)
    sampled = rng.choice(len(blocks), size=min(count, len(blocks)), replace=False)
    columns = _largest(blocks[sampled], kept)
    for _ in range(REFINEMENTS if kept < shape.cols else 0):
        flat = assign(energy, columns).reshape(-1)
        sums = np.zeros((len(columns), *blocks.shape[1:]))
        np.add.at(sums, flat, blocks)
        used = np.bincount(flat, minlength=len(columns)) > 0
        columns[used] = _largest(sums[used], kept)
    return SparseMatrix(backbone, PatternSet(shape, columns), assign(energy, columns))
