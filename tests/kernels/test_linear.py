"""pattern_linear and dense_linear against NumPy in float64, over groups, odd shapes and decisions."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from rt3_tvm.pattern import PatternRecipe, PatternShape, cut_backbone, cut_patterns
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.few_tokens import few_token_linear
from rt3_tvm.schedules.layout import FLOAT32
from rt3_tvm.schedules.linear_decisions import (
    LinearDecisions,
    LinearPacking,
    LinearShape,
    MatrixShape,
    best_cycles,
    choose_decisions,
    choose_packing,
    padded_kept,
    sparse_pays,
    split_tiles,
)
from rt3_tvm.schedules.packing import offset_dtype, pack_linear
from rt3_tvm.schedules.pattern_linear import linear_algorithm
from tests.kernels.harness import CPU, from_tiles, run_kernel, to_tiles

CPUS = [CpuShape(16, 16, 32768), CpuShape(16, 32, 65536), CpuShape(32, 16, 32768), CpuShape(64, 32, 49152)]


def check(rows, cols, tokens, columns, valid, weight, packing, decisions=None, activation="none"):
    rng = np.random.default_rng(1)
    x, bias = (rng.standard_normal(s).astype(np.float32) for s in ((1, tokens, cols), rows))
    group, tiles = rows // len(columns), -(-tokens // 16)
    shape = LinearShape(tiles, rows, cols, padded_kept(columns.shape[1], packing), group, offset_dtype(cols))
    decisions = decisions or choose_decisions(CPU, shape, packing)
    func = linear_algorithm(shape, packing, decisions, CPU.lanes(FLOAT32), activation)
    packed = pack_linear(weight, columns, valid, bias, packing)
    y = np.full((tiles, rows, 16), np.nan, np.float32)
    family = "dense_linear" if shape.dense else "pattern_linear"
    run_kernel(family, func, to_tiles(x), packed.values, packed.offsets, np.ascontiguousarray(packed.bias), y)
    want = x[0].astype(np.float64) @ weight.T.astype(np.float64) + bias
    if activation == "relu":
        want = np.maximum(want, 0)
    np.testing.assert_allclose(from_tiles(y, 1, tokens)[0], want, atol=2e-5, rtol=0)


def sparse(rows, cols, group, sparsity, block_sparsity=0.0, pattern=(None, None)):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
    shape = PatternShape(pattern[0] or group, pattern[1] or 32, group)
    backbone = cut_backbone(weight, block_sparsity, shape.rows)
    matrix = cut_patterns(weight, backbone, PatternRecipe(shape, 8), (1 - sparsity) / backbone.density)
    return weight * matrix.mask(), *matrix.group_columns()


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("tokens", [1, 7, 32, 128])
def test_pattern_linear(group, tokens):
    rows, cols = 96, 160
    weight, columns, valid = sparse(rows, cols, group, 0.75)
    packing = choose_packing(CPU, MatrixShape(rows, cols, columns.shape[1], group))
    check(rows, cols, tokens, columns, valid, weight, packing)


def test_block_pruned_with_blocks_that_do_not_fit():
    weight, columns, valid = sparse(384, 384, 4, 0.35, block_sparsity=0.3, pattern=(100, 100))
    assert not valid.all()  # the last block of each row is padded
    check(384, 384, 7, columns, valid, weight, choose_packing(CPU, MatrixShape(384, 384, columns.shape[1], 4)))


def test_parts_of_the_tiles_fill_one_result():
    rows, cols, tokens = 32, 200, 7 * 16 - 3
    weight, columns, valid = sparse(rows, cols, 4, 0.5)
    packing = LinearPacking(4, 3)
    rng = np.random.default_rng(1)
    x, bias = (rng.standard_normal(s).astype(np.float32) for s in ((1, tokens, cols), rows))
    packed = pack_linear(weight, columns, valid, bias, packing)
    y = np.full((7, rows, 16), np.nan, np.float32)
    whole = LinearShape(7, rows, cols, padded_kept(columns.shape[1], packing), 4)
    for part in (replace(whole, tiles=4, of=7), replace(whole, tiles=3, first=4, of=7)):
        decisions = choose_decisions(CPU, part, packing)
        func = linear_algorithm(part, packing, decisions, CPU.lanes(FLOAT32), "none")
        arrays = to_tiles(x), packed.values, packed.offsets, np.ascontiguousarray(packed.bias), y
        run_kernel("pattern_linear", func, *arrays)
    want = x[0].astype(np.float64) @ weight.T.astype(np.float64) + bias
    np.testing.assert_allclose(from_tiles(y, 1, tokens)[0], want, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("tiles", "parts"),
    [
        *(
            (tiles, [(0, tiles)]) for tiles in (1, 3, 4, 8, 32)
        ),  # register blocks of up to 4 tiles fit, or one kernel is cheaper
        (5, [(0, 4), (4, 1)]),
        (13, [(0, 12), (12, 1)]),
    ],
)
def test_tiles_are_split_into_whole_register_blocks_and_a_rest(tiles, parts):
    cpu = CpuShape(64, 32, 49152)
    packing = choose_packing(cpu, MatrixShape.dense_of(768, 768))
    shape = LinearShape(tiles, 768, 768, padded_kept(768, packing), 768)
    assert [(p.first, p.tiles) for p in split_tiles(cpu, shape, packing)] == parts


@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_column_blocks_accumulate(blocks):
    weight, columns, valid = sparse(32, 200, 4, 0.5)
    check(32, 200, 48, columns, valid, weight, LinearPacking(4, blocks), activation="relu")


@pytest.mark.parametrize("decisions", [LinearDecisions(1), LinearDecisions(2, 4), LinearDecisions(1, 2)])
@pytest.mark.parametrize("unroll", [1, 3, 8])
def test_decisions_do_not_change_the_result(decisions, unroll):
    weight, columns, valid = sparse(64, 160, 2, 0.75)
    if decisions.vectors * CPU.lanes(FLOAT32) > 32:
        pytest.skip(f"{decisions.vectors} vectors of {CPU.lanes(FLOAT32)} lanes exceed 32 tokens")
    check(64, 160, 32, columns, valid, weight, LinearPacking(2, 2, unroll), decisions)


def test_many_columns_need_wide_offsets():
    weight, columns, valid = sparse(8, 5000, 4, 0.9)
    assert offset_dtype(5000) == "int32"
    check(8, 5000, 16, columns, valid, weight, choose_packing(CPU, MatrixShape(8, 5000, columns.shape[1], 4)))


@pytest.mark.parametrize(("rows", "cols", "tokens"), [(96, 64, 32), (50, 33, 7), (7, 129, 20)])
def test_dense_linear(rows, cols, tokens):
    weight = (np.random.default_rng(0).standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
    columns = np.arange(cols, dtype=np.int32)[None]
    check(
        rows,
        cols,
        tokens,
        columns,
        np.ones_like(columns, bool),
        weight,
        choose_packing(CPU, MatrixShape.dense_of(rows, cols)),
    )


@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("group", "packing"), [(4, LinearPacking(4, 3, 4)), (8, LinearPacking(8, 1, 2)), (96, LinearPacking(8, 2, 2))]
)
def test_few_tokens(tokens, group, packing):
    rows, cols = 96, 160
    if group == rows:
        weight = np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32) / 10
        columns, valid = np.arange(cols, dtype=np.int32)[None], np.ones((1, cols), np.bool_)
    else:
        weight, columns, valid = sparse(rows, cols, group, 0.7)
    rng = np.random.default_rng(1)
    x, bias = (rng.standard_normal(s).astype(np.float32) for s in ((1, tokens, cols), rows))
    shape = LinearShape(1, rows, cols, padded_kept(columns.shape[1], packing), rows // len(columns))
    packed = pack_linear(weight, columns, valid, bias, packing)
    y = np.full((1, rows, 16), np.nan, np.float32)
    func = few_token_linear(shape, packing, tokens, "relu")
    run_kernel(
        "few_token_linear", func, to_tiles(x), packed.values, packed.offsets, np.ascontiguousarray(packed.bias), y
    )
    want = np.maximum(x[0].astype(np.float64) @ weight.T.astype(np.float64) + bias, 0)
    np.testing.assert_allclose(from_tiles(y, 1, tokens)[0], want, atol=2e-5, rtol=0)
    assert (y[0, :, tokens:] == 0).all()  # attention multiplies what pads a tile by zero: it must be finite


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("group", [1, 2, 4, 8, 768])
@pytest.mark.parametrize("tiles", [1, 2, 3, 8])
def test_default_decisions_fit_the_registers(cpu, group, tiles):
    packing = choose_packing(cpu, MatrixShape(768, 768, 192, group))
    shape = LinearShape(tiles, 768, 768, padded_kept(192, packing), group)
    d = choose_decisions(cpu, shape, packing)
    accumulators = packing.rows * d.vectors * d.groups
    assert accumulators + 1 <= cpu.registers
    assert (tiles * 16) % (d.vectors * cpu.lanes(FLOAT32)) == 0
    assert 768 % packing.rows == 0 and group % packing.rows == 0 and (768 // packing.rows) % d.groups == 0


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(("rows", "cols"), [(768, 768), (3072, 768), (768, 3072), (384, 384), (200, 800)])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_modelled_time_falls_with_the_density(cpu, rows, cols, group):
    dense = best_cycles(cpu, MatrixShape.dense_of(rows, cols))
    times = [
        min(dense, best_cycles(cpu, MatrixShape(rows, cols, kept, group)))
        for kept in range(cols, cols // 20, -cols // 20)
    ]
    assert all(later <= earlier * 1.01 for earlier, later in pairwise(times))  # padding may differ by one iteration
    assert times[-1] < 0.4 * dense and times[0] == dense


def test_a_matrix_that_is_hardly_sparse_is_not_worth_the_sparse_kernel():
    cpu = CpuShape(32, 16, 32768)
    assert not sparse_pays(cpu, MatrixShape(768, 768, 730, 1)) and sparse_pays(cpu, MatrixShape(768, 768, 384, 1))
    assert sparse_pays(cpu, MatrixShape(768, 768, 600, 4))
