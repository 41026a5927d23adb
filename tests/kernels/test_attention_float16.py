"""Attention in float16: its kernel for Cortex-A76, compiled for this machine, against NumPy that rounds as it does, and exact."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rt3_tvm import device
from rt3_tvm.bench.kernel import Kernels, aligned, pointers_to
from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.attention_blocks import AttentionBlocks, attention_element
from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.schedules.attention_numpy import AttentionInputs, exact_attention, rounded_attention
from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.cpu import CoreCost, CpuShape, fuses_float16
from rt3_tvm.schedules.layout import FLOAT16, FLOAT32, INT8, REAL
from tests.kernels.harness import CLUSTER, from_tiles, to_tiles
from tests.kernels.test_attention import MIN, padding, reference

A76 = CpuShape.of(device.load("rk3588").with_cluster("big0").cluster)
A53 = CpuShape.of(device.load("rk3399").with_cluster("little").cluster)
UNIT = 2.0**-11
"""The largest relative error of a number that is rounded to float16."""
ROUNDED = 2.0**-10
"""Of the largest result: where powers of 2 in float32 and in NumPy lie on two sides of a middle, weights are a step apart."""


def half(*sizes, **facts):
    return AttentionShape(*sizes, **facts, element=FLOAT16)


def inputs_of(rng, shape, size=1.0, key_bias=None, score_bias=None):
    def tiles(length, heads, dim, size=1.0):
        return to_tiles((size * rng.standard_normal((shape.batch, length, heads * dim))).astype(np.float32))

    biases = [
        np.zeros((1, 1, 1, 1), np.float32) if key_bias is None else key_bias,
        np.zeros((1, 1, 1), np.float32)
        if score_bias is None
        else to_tiles(score_bias.reshape(-1, shape.length, shape.keys)),
    ]
    q, k = tiles(shape.length, shape.heads, shape.dim, size), tiles(shape.keys, shape.kv_heads, shape.dim)
    return AttentionInputs(q, k, tiles(shape.keys, shape.kv_heads, shape.v_dim), *biases)


def run(shape, inputs, cpu=A76):
    y = np.full((shape.batch * shape.tiles[0], shape.heads * shape.v_dim, 16), np.nan, np.float32)
    arrays = [aligned(a) for a in (*inputs.__dict__.values(), y)]
    with tempfile.TemporaryDirectory() as name:
        Kernels([kernel("attention_float16", shape, cpu)], cpu, Path(name)).in_halves(pointers_to(arrays))
    return arrays[-1]


def check(rng, shape, size=1.0, bound=2.0**-7, **biases):
    """Compare with NumPy that rounds as the kernel does, and with what is exact."""
    inputs = inputs_of(rng, shape, size, **biases)
    got, exact = run(shape, inputs), exact_attention(shape, inputs)
    tiles = AttentionBlocks.of(shape, A76).tiles(16)
    rounded = rounded_attention(shape, inputs, tiles, fuses_float16(CLUSTER.target_dict()))
    assert np.isfinite(got).all()  # queries that pad a tile too: the next layer multiplies them, as keys, by zero
    largest = np.abs(exact).max()
    np.testing.assert_allclose(got, rounded, atol=ROUNDED * largest, rtol=0)
    assert np.abs(got - exact).max() <= bound * largest
    return got, exact


SHAPES = {
    "MiniLM": half(1, 128, 12, 32, 32**-0.5, key_bias=(1, 1)),
    "wide heads": half(1, 64, 2, 64, 0.125, key_bias=(1, 1)),
    "odd sizes": half(2, 33, 2, 10, 0.3),
    "one tile": half(3, 7, 3, 12, 0.3, key_bias=(3, 1)),
    "causal": half(2, 60, 2, 16, 0.25, mask=StaticMask.band(60, 60, None, 0), key_bias=(2, 1)),
    "window": half(1, 100, 2, 16, 0.25, mask=StaticMask.band(100, 100, 8, 8)),
    "more keys": half(2, 19, 2, 8, 0.4, mask=StaticMask.band(19, 37, None, 18), keys=37),
    "grouped, capped": half(1, 40, 4, 16, 0.3, mask=StaticMask.band(40, 40, 9, 0), kv_heads=2, v_dim=24, soft_cap=2.0),
    "96 keys": half(1, 96, 2, 96, 96**-0.5),
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_rounds_as_numpy_does(rng, name):
    shape = SHAPES[name]
    bias = padding(rng, shape.batch, 1, shape.keys) if shape.key_bias else None
    got, exact = check(rng, shape, key_bias=bias)
    assert np.abs(got - exact).max() > 1e-5  # float16 it is


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_exact_is_what_the_float32_kernel_is_compared_with(rng, name):
    shape = SHAPES[name]
    bias = padding(rng, shape.batch, 1, shape.keys) if shape.key_bias else np.zeros((1, 1, 1, 1), np.float32)
    inputs = inputs_of(rng, shape, key_bias=bias)
    sizes = shape.length, shape.keys, shape.keys
    tokens = (from_tiles(x, shape.batch, n) for x, n in zip((inputs.q, inputs.k, inputs.v), sizes, strict=True))
    want = reference(shape, *tokens, bias.astype(np.float64))
    np.testing.assert_allclose(from_tiles(exact_attention(shape, inputs), shape.batch, shape.length), want, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
def test_biases_on_scores_and_keys(rng, batch, heads):
    shape = half(2, 48, 3, 8, 0.4, key_bias=(batch, heads), score_bias=(batch, heads))
    score_bias = rng.standard_normal((batch, heads, 48, 48)).astype(np.float32)
    check(rng, shape, key_bias=padding(rng, batch, heads, 48), score_bias=score_bias)


@pytest.mark.parametrize("bias", [MIN, -np.inf, -1e9])
def test_where_biases_hide_all_keys_these_weigh_the_same(rng, bias):
    shape = half(1, 20, 1, 8, 0.3, mask=StaticMask.band(20, 20, None, 5), key_bias=(1, 1))
    hidden = np.full((1, 1, 1, 20), bias, np.float32)
    inputs = inputs_of(rng, shape, key_bias=hidden)
    same = exact_attention(replace(shape, scale=0.0, key_bias=None), inputs)
    got = from_tiles(run(shape, inputs), 1, 20)
    np.testing.assert_allclose(got, from_tiles(same, 1, 20), atol=4 * UNIT * np.abs(inputs.v).max(), rtol=0)


@pytest.mark.parametrize("largest", [1.0, 10.0, 50.0])
def test_the_error_is_bounded_by_the_size_of_scores(rng, largest):
    """A sum of 32 products is off by 34 roundings of the sum of their sizes at most, and where it is one number by far less.

    A weight changes by as much, as a part of it; what is divided by the sum of weights by twice that.
    """
    shape = half(1, 64, 2, 32, 1.0)
    inputs = inputs_of(rng, shape)
    q, k, v = inputs.heads(shape)
    scale = largest / np.abs(q @ k.swapaxes(-1, -2)).max()
    shape = replace(shape, scale=float(scale))
    sizes = (np.abs(q) @ np.abs(k).swapaxes(-1, -2)).max() * scale
    bound = 2 * np.expm1((shape.dim + 3) * UNIT * sizes) + (64 + 4) * UNIT
    error = np.abs(run(shape, inputs) - exact_attention(shape, inputs)).max()
    assert error <= bound * np.abs(v).max()
    assert error <= 8 * UNIT * (1 + largest) * np.abs(v).max()  # what is typical, and docs/kernels.md says


def test_large_numbers_are_no_numbers_rather_than_wrong(rng):
    """Scores beyond what float16 holds: the proof of a bundle refuses them, and nothing hides them at run time."""
    shape = half(1, 16, 1, 8, 1.0)
    inputs = inputs_of(rng, shape, 1e5)
    assert not np.isfinite(run(shape, inputs)).all()
    assert not np.isfinite(rounded_attention(shape, inputs, 1, fused=False)).all()


def test_weights_near_1_leave_room_for_values(rng):
    """64 weights of the largest size, and values up to 600."""
    shape = half(1, 64, 1, 8, 0.0)
    inputs = inputs_of(rng, shape)
    inputs = replace(inputs, v=np.full_like(inputs.v, 600.0))
    np.testing.assert_allclose(run(shape, inputs), 600.0, rtol=64 * UNIT)


@pytest.mark.parametrize(
    ("cpu", "asked", "dim", "wanted"),
    [
        (A76, FLOAT16, 32, FLOAT32),
        (A76, INT8, 32, FLOAT16),
        (A76, INT8, 64, FLOAT16),
        (A76, INT8, 256, FLOAT16),
        (A76, FLOAT32, 32, FLOAT32),
        (A76, INT8, 37, FLOAT32),  # 37 parts of one feature
        (A53, INT8, 32, FLOAT32),
    ],
)
def test_what_attention_multiplies(cpu, asked, dim, wanted):
    assert attention_element(AttentionShape(1, 128, 2, dim, 1.0), cpu, asked) is wanted
    slow = A76.with_cost(FLOAT16, CoreCost(fma=10.0))
    assert attention_element(AttentionShape(1, 128, 2, dim, 1.0), slow, asked) is REAL


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_can_be_read_back(name):
    assert AttentionShape.of(SHAPES[name].to_attrs()) == SHAPES[name]
