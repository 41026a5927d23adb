"""Which columns are put together in quads: an order of the columns of an input tensor, free for int8.

Its quantiser gathers features in any order, so that columns that rows want together need not be neighbours. Greedy: a quad grows
by the column that is most alike, by the cosine of the energies that groups of rows see in it. Then columns are swapped between
quads as long as groups keep more: the sum, over groups and quads, of what exceeds the energy from which a group keeps a quad.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rt3_tvm.pattern import QUAD, Floats, Ints

MOST_GROUPS = 512
"""Groups of rows that the order is found by; of more so many are drawn."""
MOST_TRIED = 256
"""Columns that one is tried to be swapped with; of more so many are drawn."""
PASSES = 2
"""Over all columns, each swapped with the best of those tried."""


def quad_order(weights: Sequence[Floats], group: int, density: float, seed: int = 0) -> Ints:
    """Return an order of the columns of some matrices that read one tensor: four after the other are a quad.

    Parameters
    ----------
    weights
        (rows, cols) each; cols is the same, a multiple of 4.
    group
        V: rows that keep the same quads; rows behind the last whole group do not count.
    density
        Part of the quads that a group is to keep, in (0, 1].
    """
    energy, rng = np.concatenate([_energies(w, group) for w in weights], axis=1), np.random.default_rng(seed)
    if energy.shape[1] > MOST_GROUPS:
        energy = energy[:, np.sort(rng.choice(energy.shape[1], MOST_GROUPS, replace=False))]
    energy /= np.maximum(energy.sum(axis=0), np.finfo(np.float32).tiny)
    quads = _alike(energy)
    for _ in range(PASSES):
        _swap(energy, quads, density, rng)
    return np.sort(quads, axis=1).reshape(-1).astype(np.int32)


def _energies(weight: Floats, group: int) -> Floats:
    """Return the energy of each column in each group of rows, (cols, groups)."""
    rows = len(weight) // group * group
    return np.square(weight[:rows]).reshape(-1, group, weight.shape[1]).sum(axis=1).T.astype(np.float32)


def _alike(energy: Floats) -> npt.NDArray[np.int64]:
    """Return quads (cols / 4, 4): each begins with the column of most energy that is left."""
    norms = np.maximum(np.linalg.norm(energy, axis=1), np.finfo(np.float32).tiny)
    alike = (energy @ energy.T) / norms / norms[:, None]  # cosines
    left = np.ones(len(energy), np.bool_)
    quads = np.empty((len(energy) // QUAD, QUAD), np.int64)
    for quad in quads:
        for i in range(QUAD):
            wanted = alike[quad[:i]].sum(axis=0) if i else norms
            quad[i] = np.argmax(np.where(left, wanted, -np.inf))
            left[quad[i]] = False
    return quads


def _swap(energy: Floats, quads: npt.NDArray[np.int64], density: float, rng: np.random.Generator) -> None:
    """Swap each column with the one of another quad that raises most of what groups keep, if any does; in place."""
    every = np.arange(len(energy))
    sums = energy[quads].sum(axis=1)  # (quads, groups)
    kept = max(1, round(density * len(quads)))
    least = np.partition(sums, len(quads) - kept, axis=0)[len(quads) - kept]  # that a group keeps
    worth = np.maximum(sums - least, 0.0).sum(axis=1)
    home = np.empty(len(energy), np.int64)
    home[quads] = np.arange(len(quads))[:, None]
    for column in every:
        others = every if len(every) <= MOST_TRIED else rng.choice(every, MOST_TRIED, replace=False)
        mine, theirs = home[column], home[others]
        mine_without = sums[mine] - energy[column] - least
        gained = np.maximum(mine_without + energy[others], 0.0).sum(axis=1) - worth[mine]
        given = np.maximum(sums[theirs] - energy[others] + (energy[column] - least), 0.0).sum(axis=1) - worth[theirs]
        best = int(np.argmax(np.where(theirs == mine, 0.0, gained + given)))
        if theirs[best] == mine or gained[best] + given[best] <= 0.0:
            continue
        other, its = others[best], theirs[best]
        quads[mine][quads[mine] == column], quads[its][quads[its] == other] = other, column
        home[column], home[other] = its, mine
        for quad in (mine, its):
            sums[quad] = energy[quads[quad]].sum(axis=0)
            worth[quad] = np.maximum(sums[quad] - least, 0.0).sum()
