"""Linear layers in float16: planned for Cortex-A76, compiled for this machine, against NumPy that rounds as they do."""

import platform
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rt3_tvm import device
from rt3_tvm.bench.kernel import Kernels, aligned, pointers_to
from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.cpu import CpuShape, features_of
from rt3_tvm.schedules.layout import FEATURE_MAJOR, FLOAT16, FLOAT32
from rt3_tvm.schedules.linear_decisions import LONGEST_SUM, LinearPacking, padded_kept
from rt3_tvm.schedules.linear_plan import (
    PLANNERS,
    LinearPlan,
    MatrixShape,
    TokenCount,
    layout_of,
    plan_linear,
    plan_of_family,
)
from rt3_tvm.schedules.packing import pack_linear
from tests.kernels.harness import CLUSTER

A76 = CpuShape.of(device.load("rk3588").with_cluster("big0").cluster)
A55 = CpuShape.of(device.load("rk3588").with_cluster("little").cluster)
HALF = np.finfo(np.float16)


def problem(plan, kept):
    """Return a weight that keeps so many columns in each group of rows, its bias, and tokens."""
    rng, m, t = np.random.default_rng(1), plan.matrix, plan.tokens
    order = rng.permuted(np.tile(np.arange(m.cols), (m.rows // m.group, 1)), axis=1)
    columns = np.sort(order[:, :kept], axis=1).astype(np.int32)
    weight = (rng.standard_normal((m.rows, m.cols)) / np.sqrt(m.cols)).astype(np.float32)
    bias, x = (rng.standard_normal(s).astype(np.float32) for s in (m.rows, (t.batch, t.length, m.cols)))
    return columns, weight, bias, x


def run(plan, columns, weight, bias, x, activation="none"):
    """Return Y as (batch, length, rows), computed by the kernels of a plan on packed weights."""
    packed = pack_linear(weight, columns, np.ones_like(columns, np.bool_), bias, plan.packing, plan.element)
    shapes = {"values": packed.values, "offsets": packed.offsets, "bias": packed.bias}
    assert {name: (a.shape, str(a.dtype)) for name, a in shapes.items()} == plan.weights
    y = np.full(FEATURE_MAJOR.shape(plan.tokens.tiles(), plan.matrix.rows), np.nan, np.float32)
    arrays = [aligned(a) for a in (plan.layout.pack(x), packed.values, packed.offsets, packed.bias, y)]
    with tempfile.TemporaryDirectory() as name:
        parts = [kernel(plan.family, plan, part, activation, A76) for part in plan.parts]
        Kernels(parts, A76, Path(name)).in_halves(pointers_to(arrays))
    return FEATURE_MAJOR.unpack(arrays[-1], plan.tokens.batch, plan.tokens.length)


def rounded_sums(plan, columns, weight, bias, x, fused):
    """Return W X + b: float16 products added one by one, each sum rounded, and each product where they are not fused.

    Column blocks and the bias are added in float32.
    """
    kept = padded_kept(columns.shape[1], plan.packing) // plan.packing.column_blocks
    w, tokens = weight.astype(np.float16).astype(np.float64), x.astype(np.float16).astype(np.float64)
    result = np.broadcast_to(bias, (*x.shape[:2], len(bias))).astype(np.float32)
    rows = np.arange(len(weight))
    of_row = np.repeat(columns, plan.matrix.group, axis=0)
    for begin in range(0, columns.shape[1], kept):
        total = np.zeros(result.shape)
        for k in range(begin, min(begin + kept, columns.shape[1])):
            column = of_row[:, k]
            product = w[rows, column] * tokens[:, :, column]
            product = product if fused else product.astype(np.float16)
            total = (total + product).astype(np.float16).astype(np.float64)
        result = result + total.astype(np.float32)
    return result


@pytest.mark.parametrize(("batch", "length"), [(1, 128), (2, 20), (3, 7), (1, 208)])
@pytest.mark.parametrize("group", [0, 1, 2, 4, 8])
def test_each_sum_is_rounded_as_numpy_does(batch, length, group):
    matrix = MatrixShape(48, 320, 300, group) if group else MatrixShape.dense_of(48, 320)
    family = "pattern_linear" if group else "dense_linear"
    plan = plan_of_family(family, A76, matrix, TokenCount(batch, length), FLOAT16)
    assert plan.packing.column_blocks > 1 and plan.layout.element == FLOAT16
    arrays = problem(plan, matrix.kept)
    got = run(plan, *arrays)
    # LLVM spells a float16 multiply-add as two instructions of float32 where x86 has none of its own; both are rounded.
    fused = platform.machine() == "aarch64" or "avx512fp16" in features_of(CLUSTER.target_dict())
    np.testing.assert_array_equal(got, rounded_sums(plan, *arrays, fused=fused))
    columns, weight, bias, x = arrays
    kept = np.zeros_like(weight)
    np.put_along_axis(kept, np.repeat(columns, matrix.group, axis=0), 1.0, axis=1)
    exact = x.astype(np.float64) @ (weight * kept).T.astype(np.float64) + bias
    bound = HALF.eps / 2 * np.sqrt(LONGEST_SUM[FLOAT16])
    assert 1e-5 < np.abs(got - exact).max() <= bound * np.abs(exact).max()


def test_the_activation_is_float32():
    plan = plan_of_family("pattern_linear", A76, MatrixShape(32, 64, 16, 4), TokenCount(1, 32), FLOAT16)
    arrays = problem(plan, 16)
    got, sums = run(plan, *arrays, activation="relu"), run(plan, *arrays)
    np.testing.assert_array_equal(got, np.maximum(sums, 0))
    assert (got.astype(np.float16) != got).any()


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("group", [0, 4])
def test_few_tokens_multiply_by_widened_weights(tokens, group):
    matrix = MatrixShape(64, 160, 40, group) if group else MatrixShape.dense_of(64, 160)
    packing = LinearPacking(4, 2, 4)
    plan = plan_of_family("few_token_linear", A76, matrix, TokenCount(1, tokens), FLOAT16, packing)
    columns, weight, bias, x = problem(plan, matrix.kept)
    kept = np.zeros_like(weight)
    np.put_along_axis(kept, np.repeat(columns, matrix.group, axis=0), 1.0, axis=1)
    stored = (weight * kept).astype(np.float16).astype(np.float64)
    want = x.astype(np.float64) @ stored.T + bias
    np.testing.assert_allclose(run(plan, columns, weight, bias, x), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("batch", "length", "tile"), [(1, 128, 32), (1, 16, 16), (2, 20, 32), (2, 40, 16), (1, 17, 32)]
)
def test_a_wide_tile_adds_no_tokens(batch, length, tile):
    tokens = TokenCount(batch, length)
    layout = layout_of(FLOAT16, tokens)
    assert layout.token_tile == tile and tokens.tiles(layout) * tile == tokens.tiles() * FEATURE_MAJOR.token_tile


@pytest.mark.parametrize("cpu", [A76, A55])
@pytest.mark.parametrize("group", [0, 1, 2, 4, 8])
@pytest.mark.parametrize(("rows", "cols"), [(384, 384), (1536, 384), (384, 1536), (3072, 768), (480, 1000)])
def test_no_sum_is_longer_than_float16_bears(cpu, group, rows, cols):
    for kept in range(cols // 16, cols, cols // 5):
        matrix = MatrixShape(rows, cols, kept, group) if group else MatrixShape.dense_of(rows, cols)
        plan = plan_linear(cpu, matrix, TokenCount(1, 128), FLOAT16)
        assert plan.element == FLOAT16
        assert plan.parts[0].shape.kept // plan.packing.column_blocks <= LONGEST_SUM[FLOAT16]
        assert plan_linear(cpu, matrix, TokenCount(1, 7), FLOAT16).packing == plan.packing
        assert LinearPlan.of(plan.to_attrs()) == plan


@pytest.mark.parametrize("cpu", [A76, A55])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_float16_is_never_slower_than_float32_nor_fewer_columns_than_more(cpu, group):
    def cycles(matrix):
        return min(PLANNERS[element].cycles(cpu, matrix) for element in (FLOAT32, FLOAT16))

    dense = cycles(MatrixShape.dense_of(384, 384))
    times = [cycles(MatrixShape(384, 384, kept, group)) for kept in range(384, 24, -24)]
    assert times[0] <= dense * 1.01 and times[-1] < 0.4 * dense
    assert all(later <= earlier * 1.01 for earlier, later in pairwise(times))


def test_a_matrix_whose_conversion_costs_more_than_it_saves_is_float32():
    classifier = MatrixShape.dense_of(2, 384)
    assert plan_linear(A76, classifier, TokenCount(1, 128), FLOAT16) == plan_linear(A76, classifier, TokenCount(1, 128))
    wide = replace(classifier, rows=384, group=384)
    assert plan_linear(A76, wide, TokenCount(1, 128), FLOAT16).element == FLOAT16


def test_levels_share_tables_of_columns_whatever_they_multiply():
    plan = plan_of_family("pattern_linear", A76, MatrixShape(16, 64, 16, 4), TokenCount(1, 32), FLOAT16)
    columns, weight, bias, _ = problem(plan, 16)
    valid = np.ones_like(columns, np.bool_)
    half, real = (pack_linear(weight, columns, valid, bias, plan.packing, e) for e in (FLOAT16, FLOAT32))
    np.testing.assert_array_equal(half.offsets, real.offsets)
    np.testing.assert_array_equal(half.bias, real.bias)
    np.testing.assert_array_equal(half.values, real.values.astype(np.float16))


@pytest.mark.parametrize(
    ("name", "cluster", "elements"),
    [
        ("rk3588", "big0", ["float32", "float16"]),
        ("rk3588", "little", ["float32", "float16"]),
        ("rk3399", "little", ["float32"]),
        ("odroid-xu3", "LITTLE", ["float32"]),
    ],
)
def test_a_core_has_float16_where_its_features_say_so(name, cluster, elements):
    cpu = CpuShape.of(device.load(name).with_cluster(cluster).cluster)
    assert [e.dtype for e in cpu.elements if e.dtype.startswith("float")] == elements
