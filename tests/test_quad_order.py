"""Which columns become a quad, against what was put together on purpose and against their natural order."""

import numpy as np
import pytest

from rt3_tvm.pattern import PatternRecipe, PatternShape, cut_backbone, cut_patterns
from rt3_tvm.prune.quad_order import quad_order


def scattered(rng, rows, quads, noise):
    """Return a weight whose columns belong together in fours, scattered: (rows, 4 quads), and the four of each."""
    sizes = np.repeat(rng.exponential(size=(rows, quads)) ** 2, 4, axis=1)
    weight = sizes * rng.choice([-1.0, 1.0], sizes.shape) + noise * rng.standard_normal(sizes.shape)
    order = rng.permutation(4 * quads)
    return weight[:, order].astype(np.float32), np.argsort(order).reshape(quads, 4)


@pytest.mark.parametrize("group", [1, 2, 3])
def test_what_belongs_together_is_found(rng, group):
    weight, together = scattered(rng, 200, 15, 0.01)
    found = quad_order([weight[:80], weight[80:]], group, 0.4).reshape(-1, 4)
    assert {tuple(sorted(q)) for q in found} == {tuple(sorted(q)) for q in together}


@pytest.mark.parametrize("group", [1, 4])
def test_an_order_keeps_more_than_the_natural_one(rng, group):
    """Of columns of many sizes, also where there are more groups and columns than are looked at."""
    weight, _ = scattered(rng, 4 * 600, 80, 0.5)
    table = quad_order([weight], group, 0.3)
    assert (np.sort(table) == np.arange(320)).all() and table.dtype == np.int32
    recipe, energies = PatternRecipe(PatternShape(group, 32, group, 4), 10**6), []
    for order in (None, table):
        backbone = cut_backbone(weight, 0.0, 4, adjacent=4, table=order)
        matrix = cut_patterns(weight, backbone, recipe, 0.25)
        mask = matrix.mask()
        quads = mask if order is None else mask[:, table]
        assert (quads.reshape(len(mask), -1, 4).all(2) == quads.reshape(len(mask), -1, 4).any(2)).all()
        assert mask.mean() == pytest.approx(0.25)
        energies.append((weight[mask] ** 2).sum() / (weight**2).sum())
    assert energies[1] > energies[0] + 0.05


def test_a_backbone_in_an_order_keeps_its_quads(rng):
    weight, together = scattered(rng, 16, 10, 0.0)
    table = together.reshape(-1).astype(np.int32)
    backbone = cut_backbone(weight, 0.5, 8, adjacent=4, table=table)
    energy = (weight.astype(np.float64) ** 2)[:, table].reshape(2, 8, 10, 4).sum((1, 3))
    for block in range(2):
        kept = backbone.mask()[8 * block].nonzero()[0]
        best = together[np.argsort(energy[block])[-5:]]
        assert set(kept) == set(best.reshape(-1))
