"""The maths of cutting, assigning and masking, against brute force."""

import itertools

import numpy as np
import pytest

from rt3_tvm.errors import Rt3Error
from rt3_tvm.pattern import PatternRecipe, PatternShape, assign, cut_backbone, cut_patterns


def weights(rows, cols, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def test_backbone_keeps_the_largest_columns_of_each_block_row():
    w = weights(10, 12)
    backbone = cut_backbone(w, 0.5, 4)
    assert backbone.columns.shape == (3, 6)
    for i, start in enumerate((0, 4, 8)):
        norms = np.linalg.norm(w[start : start + 4], axis=0)
        assert set(backbone.columns[i]) == set(np.argsort(norms)[-6:])


def test_assignment_is_the_smallest_residual():
    w = weights(6, 8)
    matrix = cut_patterns(w, cut_backbone(w, 0.0, 6), PatternRecipe(PatternShape(2, 4, 1), 3), 0.5)
    for i, j in itertools.product(range(3), range(2)):
        block = w[2 * i : 2 * i + 2, 4 * j : 4 * j + 4]
        residuals = []
        for pattern in matrix.patterns.columns:
            kept = np.zeros_like(block)
            for row in range(2):
                kept[row, pattern[row]] = block[row, pattern[row]]
            residuals.append(np.linalg.norm(block - kept))
        assert matrix.assignment[i, j] == np.argmin(residuals)


def test_one_pattern_per_block_keeps_the_largest_weights():
    w = weights(4, 8)
    matrix = cut_patterns(w, cut_backbone(w, 0.0, 4), PatternRecipe(PatternShape(2, 4, 1), 4), 0.5)
    for row, col in itertools.product(range(4), range(0, 8, 4)):
        block = np.abs(w[row, col : col + 4])
        assert set(np.flatnonzero(matrix.mask()[row, col : col + 4])) == set(np.argsort(block)[-2:])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_of_three_axes_is_masked_as_its_matrix(transposed):
    """(hidden, heads, head size): projections to heads store their columns first, those of heads their rows."""
    stored = weights(16, 24).reshape(16, 4, 6)
    w = stored.reshape(16, 24).T if transposed else stored.reshape(16, 24)
    backbone = cut_backbone(w, 0.25, 8, transposed)
    np.testing.assert_array_equal(backbone.oriented(stored), w)
    matrix = cut_patterns(w, backbone, PatternRecipe(PatternShape(4, 8, 4), 4), 0.5)
    masked = matrix.masked(stored)
    assert masked.shape == stored.shape
    np.testing.assert_array_equal(backbone.oriented(masked), w * matrix.mask())


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("block_sparsity", [0.0, 0.3])
def test_mask_is_grouped_balanced_and_inside_the_backbone(group, block_sparsity):
    w = weights(20, 50)
    backbone = cut_backbone(w, block_sparsity, 8)
    matrix = cut_patterns(w, backbone, PatternRecipe(PatternShape(8, 10, group), 5), 0.4)
    mask = matrix.mask()
    assert mask.shape == w.shape
    grouped = mask.reshape(-1, group, 50)
    assert (grouped == grouped[:, :1]).all()
    for row in range(20):
        assert not mask[row, np.setdiff1d(np.arange(50), backbone.columns[row // 8])].any()
    assert matrix.density == pytest.approx(mask.mean())


@pytest.mark.parametrize(("cols", "width"), [(48, 32), (384, 100), (50, 64), (768, 32)])
@pytest.mark.parametrize("density", [0.5, 0.25, 0.1])
def test_density_is_met_although_blocks_do_not_fit(cols, width, density):
    w = weights(16, cols)
    matrix = cut_patterns(w, cut_backbone(w, 0.0, 16), PatternRecipe(PatternShape(4, width, 4), 8), density)
    assert abs(matrix.density - density) <= 0.5 * -(-cols // width) / cols + 1e-9


def test_more_patterns_keep_more_energy():
    w = weights(64, 128)
    kept = [
        float(
            (
                w[cut_patterns(w, cut_backbone(w, 0.0, 64), PatternRecipe(PatternShape(4, 16, 4), k), 0.5).mask()] ** 2
            ).sum()
        )
        for k in (1, 8, 64)
    ]
    assert kept[0] < kept[1] < kept[2]


def test_refined_patterns_beat_sampled_ones():
    w = weights(64, 128)
    shape = PatternShape(4, 16, 4)
    refined = cut_patterns(w, cut_backbone(w, 0.0, 64), PatternRecipe(shape, 8), 0.5)
    energy = np.square(w).reshape(16, 4, 8, 16).sum(1).transpose(0, 1, 2)[:, :, None, :].astype(np.float64)
    rng = np.random.default_rng(0)
    sampled = np.sort(
        np.argsort(-energy.reshape(-1, 1, 16)[rng.choice(128, 8, replace=False)], axis=-1)[..., :8], axis=-1
    )
    chosen = assign(energy, sampled.astype(np.int32))
    kept = np.take_along_axis(energy, sampled[chosen], axis=3).sum()
    assert (w[refined.mask()] ** 2).sum() > kept


@pytest.mark.parametrize("shape", [(4, 32, 3), (0, 4, 1), (4, 4, 0)])
def test_bad_shapes_say_what_is_accepted(shape):
    with pytest.raises(Rt3Error, match=r"choose one of|at least 1"):
        PatternShape(*shape)


def test_group_shrinks_to_fit_a_matrix():
    assert PatternShape(4, 32, 4).fitted(28785, 384) == PatternShape(3, 32, 3)
    assert PatternShape(8, 32, 4).fitted(28785, 384) == PatternShape(6, 32, 3)
    assert PatternShape(8, 32, 8).fitted(100, 384).group == 5
    assert PatternShape(8, 32, 8).fitted(101, 384).group == 1
    assert PatternShape(100, 100, 4).fitted(384, 384) == PatternShape(100, 100, 4)


@pytest.mark.parametrize("start", ["blocks", "maps", "random"])
@pytest.mark.parametrize("count", [5, 1000])
@pytest.mark.parametrize("block_sparsity", [0.0, 0.3])
def test_quads_are_kept_whole(start, count, block_sparsity):
    """Also in compacted columns, whose last block is a narrow one."""
    w = weights(20, 52)
    backbone = cut_backbone(w, block_sparsity, 8, adjacent=4)
    assert backbone.columns.shape[1] == 4 * round(13 * (1 - block_sparsity))
    matrix = cut_patterns(w, backbone, PatternRecipe(PatternShape(4, 16, 2, 4), count, start), 0.5)
    mask = matrix.mask()
    quads = mask.reshape(10, 2, 13, 4)
    assert (quads == quads[:, :1, :, :1]).all() and 0.4 < mask.mean() / backbone.density < 0.6
    assert not (mask & ~backbone.mask()).any()
    columns, valid = matrix.group_columns()
    whole = columns.reshape(10, -1, 4)[valid.reshape(10, -1, 4).all(2)]
    assert (whole == whole[:, :1] // 4 * 4 + np.arange(4)).all() and 4 * len(whole) == valid.sum()


def test_the_quads_of_most_energy_are_kept():
    w = weights(4, 16)
    matrix = cut_patterns(w, cut_backbone(w, 0.0, 4, adjacent=4), PatternRecipe(PatternShape(1, 16, 1, 4), 4), 0.5)
    energy = (w.astype(np.float64) ** 2).reshape(4, 4, 4).sum(2)
    for row in range(4):
        kept = matrix.mask()[row].reshape(4, 4).all(1)
        assert set(np.flatnonzero(kept)) == set(np.argsort(energy[row])[-2:])


def test_a_shape_in_quads():
    assert str(PatternShape(4, 32, 4, 4)) == "4x32q" and str(PatternShape(4, 32, 4)) == "4x32"
    assert PatternShape(4, 32, 4, 4).fitted(384, 384) == PatternShape(4, 32, 4, 4)
    assert PatternShape(4, 32, 4, 4).fitted(384, 30) == PatternShape(4, 32, 4)  # no whole quads
    with pytest.raises(
        Rt3Error, match=r"^pattern shape 4x30q: its 30 columns are no whole quads: choose a multiple of 4$"
    ):
        PatternShape(4, 30, 4, 4)
    with pytest.raises(Rt3Error, match=r"one by one or in quads, not 2 together$"):
        PatternShape(4, 32, 4, 2)
