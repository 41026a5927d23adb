"""The attention kernel against NumPy in float64: masks of every kind, biases, grouped heads, soft caps, odd lengths."""

import numpy as np
import pytest
from tvm import tirx
from tvm.sym import Analyzer

from rt3_tvm.schedules import attention
from rt3_tvm.schedules.attention_blocks import AttentionBlocks
from rt3_tvm.schedules.attention_mask import StaticMask, analyse
from rt3_tvm.schedules.attention_shape import AttentionShape, piecewise
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.vector_math import VectorUnit
from tests.kernels.harness import CPU, from_tiles, run_kernel, to_tiles

MIN = np.finfo(np.float32).min


def reference(shape, q, k, v, bias):
    """Attention on (batch, length, heads * dim) arrays; what a band hides is hidden."""

    def heads_first(x, heads):
        return x.astype(np.float64).reshape(shape.batch, x.shape[1], heads, -1).transpose(0, 2, 1, 3)

    q, k, v = heads_first(q, shape.heads), *(heads_first(x, shape.kv_heads) for x in (k, v))
    k, v = (np.repeat(x, shape.heads // shape.kv_heads, axis=1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) * shape.scale
    if shape.soft_cap:
        scores = shape.soft_cap * np.tanh(scores / shape.soft_cap)
    scores = np.where(shape.mask.shown(shape.length, shape.keys), scores + bias, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(shape.batch, shape.length, -1)


def check(rng, shape, key_bias=None, score_bias=None, blocks=None, unit=CPU.unit):
    def tokens(length, features):
        return rng.standard_normal((shape.batch, length, features)).astype(np.float32)

    q, k = tokens(shape.length, shape.heads * shape.dim), tokens(shape.keys, shape.kv_heads * shape.dim)
    v = tokens(shape.keys, shape.kv_heads * shape.v_dim)
    want = reference(shape, q, k, v, sum(b.astype(np.float64) for b in (key_bias, score_bias) if b is not None))
    y = np.full_like(to_tiles(want.astype(np.float32)), np.nan)
    keys = np.zeros((1, 1, 1, 1), np.float32) if key_bias is None else key_bias
    scores = np.zeros((1, 1, 1), np.float32)
    if score_bias is not None:
        scores = to_tiles(score_bias.reshape(-1, shape.length, shape.keys))
    func = attention.attention(shape, blocks or AttentionBlocks.of(shape, CPU), unit)
    run_kernel("attention", func, to_tiles(q), to_tiles(k), to_tiles(v), keys, scores, y)
    np.testing.assert_allclose(from_tiles(y, shape.batch, shape.length), want, atol=3e-6, rtol=0)
    assert np.isfinite(y).all()  # queries that pad a tile too: the next layer multiplies them, as keys, by zero


def padding(rng, batch, heads, length):
    bias = np.where(rng.random((batch, heads, 1, length)) < 0.4, MIN, 0).astype(np.float32)
    bias[..., 0] = 0
    return bias


SIZES = [(1, 128, 3, 32), (2, 7, 3, 12), (2, 33, 2, 10), (1, 16, 1, 7)]


@pytest.mark.parametrize(("batch", "length", "heads", "dim"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_keys(rng, batch, length, heads, dim, biased):
    shape = AttentionShape(batch, length, heads, dim, dim**-0.5, key_bias=(batch, 1) if biased else None)
    check(rng, shape, padding(rng, batch, 1, length) if biased else None)


BANDS = [(None, 0), (8, 8), (0, 0), (20, 0), (40, 3), (None, 17), (5, None)]


@pytest.mark.parametrize(
    ("length", "left", "right"),
    [(length, *band) for length in (100, 33) for band in BANDS] + [(n, *band) for n in (128, 7) for band in BANDS[:2]],
)
def test_bands(rng, length, left, right):
    mask = StaticMask.band(length, length, left, right)
    check(rng, AttentionShape(2, length, 2, 12, 0.3, mask))


BLOCKS = {
    "one key": AttentionBlocks(keys=1, features=1, unrolled=1),
    "one tile": AttentionBlocks(keys=8, queries=16, features=2, mixed=16),
    "two tiles": AttentionBlocks(keys=8, queries=32, features=4, mixed=32, weights=32, rows=2),
    "two tiles, one by one": AttentionBlocks(keys=16, queries=32, features=5, mixed=16, weights=16, unrolled=4),
}


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
@pytest.mark.parametrize("length", [33, 60])
def test_grouped_heads_and_soft_cap_under_a_causal_and_a_key_mask(rng, blocks, soft_cap, length):
    if length == 33 and BLOCKS[blocks].queries == 32:
        pytest.skip("three tiles of queries are no pairs")
    mask = StaticMask.band(length, length, None, 0)
    shape = AttentionShape(2, length, 4, 16, 0.3, mask, key_bias=(2, 1), kv_heads=2, v_dim=20, soft_cap=soft_cap)
    check(rng, shape, padding(rng, 2, 1, length), blocks=BLOCKS[blocks])


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_vector_units(rng, rounds, saturates, in_place):
    shape = AttentionShape(2, 33, 2, 12, 0.3, key_bias=(2, 1))
    check(rng, shape, padding(rng, 2, 1, 33), unit=VectorUnit(rounds, saturates, in_place))


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("bias", [MIN, -np.inf, -1e9, -1e4])
def test_where_biases_hide_all_keys_these_weigh_the_same(rng, bias, rounds):
    """As in PyTorch but for -inf, where it has no number; keys that only pad their tile and those of a band stay hidden."""
    hidden = np.full((1, 1, 1, 20), bias, np.float32)
    mask = StaticMask.band(20, 20, None, 5)
    shape = AttentionShape(1, 20, 1, 8, 1e-9 if bias > -1e9 else 0.3, mask, key_bias=(1, 1))
    same = np.zeros_like(hidden)
    want = AttentionShape(1, 20, 1, 8, 0.0, mask, key_bias=(1, 1))
    q, k, v = (rng.standard_normal((1, 20, 8)).astype(np.float32) for _ in range(3))
    y = np.full_like(to_tiles(v), np.nan)
    func = attention.attention(shape, AttentionBlocks.of(shape, CPU), VectorUnit(rounds))
    run_kernel("attention", func, to_tiles(q), to_tiles(k), to_tiles(v), hidden, np.zeros((1, 1, 1), np.float32), y)
    np.testing.assert_allclose(from_tiles(y, 1, 20), reference(want, q, k, v, same), atol=3e-6, rtol=0)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("size", [30.0, 1e3, 1e5])
def test_large_scores_choose_the_largest(rng, size):
    """Weights are powers of 2: what the largest exponent is must not matter."""
    shape = AttentionShape(1, 32, 1, 8, size)
    check(rng, shape)


X86 = {
    "avx2": CpuShape(32, 16, 32768),
    "avx512": CpuShape(64, 32, 49152),
}


@pytest.mark.parametrize("core", X86)
@pytest.mark.parametrize("length", [16, 100, 128])
def test_blocks_of_cores(rng, core, length):
    shape = AttentionShape(1, length, 2, 24, 0.3, StaticMask.band(length, length, 40, 3))
    check(rng, shape, blocks=AttentionBlocks.of(shape, X86[core]))


@pytest.mark.parametrize("length", [48, 21])
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_biases_on_scores_and_keys(rng, length, batch, heads):
    bias = rng.standard_normal((batch, heads, length, length)).astype(np.float32)
    keys = padding(rng, batch, heads, length)
    shape = AttentionShape(2, length, 3, 8, 0.4, key_bias=(batch, heads), score_bias=(batch, heads))
    check(rng, shape, keys, bias)


@pytest.mark.parametrize("length", [64, 50])
def test_a_chunked_mask_skips_what_no_query_of_a_tile_sees(rng, length):
    positions = np.arange(length)
    shown = (positions[:, None] // 24 == positions // 24) & (positions <= positions[:, None])
    bias = np.where(shown, np.float32(0), MIN)[None, None]
    mask, whole = analyse(bias)
    assert not whole and mask.tiles[:3] == ((0, 1), (0, 2), (1, 3))
    check(rng, AttentionShape(1, length, 2, 8, 0.4, mask, score_bias=(1, 1)), score_bias=bias)


def test_more_keys_than_queries(rng):
    check(rng, AttentionShape(2, 19, 2, 8, 0.4, StaticMask.band(19, 37, None, 18), keys=37))


@pytest.mark.parametrize(("left", "right"), [(None, 0), (3, 3), (100, 0), (0, None), (None, None)])
def test_a_band_is_known_by_its_values(left, right):
    mask = StaticMask.band(50, 50, left, right)
    found, whole = analyse(np.where(mask.shown(50, 50), np.float32(0), MIN)[None, None])
    assert whole and found.tiles == mask.tiles
    assert (found.left, found.right) == (None if left in (None, 100) else left, right)


def test_what_is_no_band_stays_a_bias():
    triangle = np.triu(np.full((50, 50), MIN, np.float32), 1)
    slopes = np.arange(50, dtype=np.float32) - np.arange(50, dtype=np.float32)[:, None]
    found, whole = analyse((triangle + slopes)[None, None])
    assert not whole and found == StaticMask(StaticMask.band(50, 50, None, 0).tiles)
    blind = triangle.copy()
    blind[20] = MIN
    assert analyse(blind[None, None]) == (StaticMask.none(50, 50), False)


def test_tiles_that_one_head_sees_are_seen():
    masks = [np.where(StaticMask.band(64, 64, left, 0).shown(64, 64), np.float32(0), MIN) for left in (4, 40)]
    found, whole = analyse(np.stack(masks)[None])
    assert not whole and found.tiles == StaticMask.band(64, 64, 40, 0).tiles


@pytest.mark.parametrize("values", [[3, 3, 3], [1, 2, 3, 4, 4], [0, 0, 1, 2], [0, 0, 0, 3, 3, 6], [2, 0, 1]])
def test_piecewise(values):
    for j, value in enumerate(values):
        i, analyzer = tirx.Var("i", "int32"), Analyzer()
        analyzer.bind(i, tirx.const(j, "int32"))
        assert int(analyzer.simplify(piecewise(values, i) + tirx.const(0, "int32"))) == value
