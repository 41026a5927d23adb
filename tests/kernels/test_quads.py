"""Kernels of int8 whose columns are kept in quads, against integers in NumPy: on every dot product that takes them."""

from dataclasses import replace

import numpy as np
import pytest
import tvm

from rt3_tvm.bench.kernel import aligned
from rt3_tvm.codegen.kernels import lower, machine_code, with_c_signature
from rt3_tvm.schedules import SCHEDULES, kernel
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_linear import int8_kernel
from rt3_tvm.schedules.int8_lines import Lines, Quantised
from rt3_tvm.schedules.int8_packing import pack_int8, quantised, row_scales, static_factors
from rt3_tvm.schedules.int8_plan import (
    best_int8_cycles,
    choose_int8_packing,
    int8_shape,
    kernels,
    lines_of,
    quantised_for,
    takes_quads,
)
from rt3_tvm.schedules.layout import FLOAT32, INT8
from rt3_tvm.schedules.linear_decisions import LinearPacking, MatrixShape
from rt3_tvm.schedules.linear_plan import LinearPlan, TokenCount, plan_linear
from rt3_tvm.schedules.quantise import QuantiseShape
from rt3_tvm.schedules.tuned import LinearTask
from tests.kernels.harness import CLUSTER, run_kernel
from tests.kernels.test_int8 import FORMS, GROUPED, HERE, core, exact, few_kernels, mask_of, run_few, run_linear

QUAD_FORMS = [form for form in FORMS if takes_quads(core(*form))]
QUADS = [(form, group) for form, group in GROUPED if form in QUAD_FORMS and group]
"""With the rows that keep the same quads."""


def quads_of(rng, rows, cols, kept, group):
    """Return the columns of ``kept`` quads for each group of rows."""
    order = rng.permuted(np.tile(np.arange(cols // 4), (rows // group, 1)), axis=1)
    quads = np.sort(order[:, :kept], axis=1)
    return (4 * quads[:, :, None] + np.arange(4)).reshape(len(quads), -1).astype(np.int32)


def test_who_takes_quads():
    assert {dot for dot, _ in QUAD_FORMS} == {"sdot", "vpdpbusd", "vpmaddubsw"}


@pytest.mark.parametrize("tokens", [16, 32, 64])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("tiles", [1, 3, 4, 13])
def test_where_a_number_lies(rng, tokens, unsigned, tiles):
    """Vector 4q + p of a line: of each of the tokens of its part p the features of quad q."""
    lines = Lines(tokens, unsigned, quads=True)
    numbers = rng.integers(-127, 128, (tiles, 12, 16)).astype(np.int8)
    packed = lines.pack(numbers)
    assert packed.shape == lines.shape(tiles, 12)
    by_token = numbers.transpose(0, 2, 1).reshape(-1, 12)
    for token in range(16 * tiles):
        line, within = divmod(token, tokens)
        part, lane = divmod(within, tokens // 4)
        for quad in range(3):
            here = packed[line, 4 * quad + part, 4 * lane : 4 * lane + 4].astype(np.int64)
            wanted = by_token[token, 4 * quad : 4 * quad + 4].astype(np.int64)
            assert (here.astype(np.uint8) == wanted + 128 if unsigned else here == wanted).all()
    np.testing.assert_array_equal(lines.unpack(packed, tiles), numbers)


@pytest.mark.parametrize("form", QUAD_FORMS, ids=str)
@pytest.mark.parametrize("family", ["quantise", "quantise_static"])
@pytest.mark.parametrize(("tiles", "features", "length"), [(1, 8, 3), (3, 20, 16), (13, 36, 16), (1, 12, 8)])
def test_it_is_quantised_in_quads(rng, form, family, tiles, features, length):
    """As in lines, number for number; tokens that are not served become zeros, whatever lies there."""
    cpu = core(*form)
    read = quantised_for(cpu, 16 * tiles if length == 16 else length, quads=True)
    shape = QuantiseShape.of(tiles, features, read)
    x = rng.standard_normal((tiles, features, 16)).astype(np.float32)
    x[:, :, shape.served :] = np.nan
    largest = np.abs(x[:, :, : shape.served]).max(axis=(0, 2))
    inputs = [x] if family == "quantise" else [x, static_factors(0.7 * largest)]
    outputs = np.full(read.lines.shape(tiles, features), 99, np.int8), np.full((tiles, 16), np.nan, np.float32)
    arrays = [*map(aligned, (*inputs, *outputs))]
    run_kernel(family, kernel(family, shape), *arrays)
    in_lines = QuantiseShape.of(tiles, features, replace(read, lines=replace(read.lines, quads=False)))
    steps, scales = SCHEDULES[family].reference(in_lines, *inputs)
    np.testing.assert_array_equal(read.lines.unpack(arrays[-2], tiles), in_lines.lines.unpack(steps, tiles))
    np.testing.assert_allclose(arrays[-1], scales, rtol=1e-6)


@pytest.mark.parametrize(("form", "group"), QUADS, ids=str)
def test_sums_are_exact(rng, form, group):
    """Every register block that the planner may choose, with numbers over the whole range."""
    cpu, dot, rows, cols = core(*form), DOT_PRODUCTS[form[0]], 16, 40
    columns, most = quads_of(rng, rows, cols, 7, group), group
    for packing in (LinearPacking(most, 1, 1), LinearPacking(max(1, most // 2), 1, 2), LinearPacking(most, 1, 4)):
        tokens = rng.integers(-127, 128, (130, cols)).astype(np.int8)
        numbers = rng.integers(-dot.largest, dot.largest + 1, (rows, cols))
        matrix, tiles, arrays, want = exact(cpu, tokens, numbers, columns, packing, quads=True)
        assert arrays[3].shape[1] == int8_shape(cpu, matrix, packing, 1).kept // 4
        whole = tiles // lines_of(cpu).tiles * lines_of(cpu).tiles
        for vectors in {k.decisions.vectors for k in kernels(cpu, int8_shape(cpu, matrix, packing, whole), packing)}:
            np.testing.assert_array_equal(run_linear(cpu, matrix, packing, tiles, arrays, vectors), want)


@pytest.mark.parametrize("form", QUAD_FORMS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("token", [127, -127])
def test_extremes_do_not_saturate(form, sign, token):
    """Every product at its largest, of either sign."""
    cpu, largest, rows, cols, packing = core(*form), DOT_PRODUCTS[form[0]].largest, 8, 64, LinearPacking(4, 1, 1)
    columns = np.tile(np.arange(cols, dtype=np.int32), (2, 1))
    tokens, numbers = np.full((64, cols), token, np.int8), np.full((rows, cols), sign * largest)
    matrix, tiles, arrays, want = exact(cpu, tokens, numbers, columns, packing, quads=True)
    assert abs(want).min() == 127 * largest * cols
    np.testing.assert_array_equal(run_linear(cpu, matrix, packing, tiles, arrays), want)


@pytest.mark.parametrize(("form", "group"), QUADS, ids=str)
def test_sums_of_a_handful_of_tokens_are_exact(rng, form, group):
    """Lanes that hold none are zeros, whatever lies there."""
    cpu, dot, rows, cols = core(*form), DOT_PRODUCTS[form[0]], 16, 40
    columns, packing, families = quads_of(rng, rows, cols, 7, group), LinearPacking(group, 1, 2), set()
    for length in (1, 4, 5, 12):
        tokens = rng.integers(-127, 128, (16, cols)).astype(np.int8)
        numbers = rng.integers(-dot.largest, dot.largest + 1, (rows, cols))
        tokens[0], numbers[:8] = rng.choice([-127, 127]), dot.largest
        lines = quantised_for(cpu, length, quads=True).lines
        matrix, _, arrays, want = exact(cpu, tokens, numbers, columns, packing, lines, quads=True)
        for got, served in run_few(cpu, matrix, packing, length, arrays):
            np.testing.assert_array_equal(got[:served], want[:served])
            assert not got[served:].any() and length <= served < length + 16
        families |= {family for family, _, _ in few_kernels(cpu, matrix, packing, length)}
    assert ("few_token_linear_int8" in families) == (packing.rows % 4 == 0)


@pytest.mark.parametrize("form", QUAD_FORMS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_random_shapes(form, seed):
    """Rows and tokens that are multiples of nothing, positions of padding, scales, bias and an activation."""
    rng = np.random.default_rng(seed)
    cpu, dot = core(*form), DOT_PRODUCTS[form[0]]
    group = int(rng.choice([1, 2, 3, 4, 8]))
    rows, quads, tiles = group * int(rng.integers(1, 12)), int(rng.integers(2, 50)), int(rng.integers(1, 14))
    cols, kept = 4 * quads, int(rng.integers(1, quads + 1))
    columns = quads_of(rng, rows, cols, kept, group)
    valid = np.repeat(rng.random((len(columns), kept)) < 0.9, 4, axis=1)
    weight, bias = rng.standard_normal((rows, cols)).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    matrix = MatrixShape(rows, cols, columns.shape[1], group, True)
    packing = choose_int8_packing(cpu, matrix)
    packed = pack_int8(weight, columns, valid, bias, packing, dot, quads=True)
    tokens, scales = rng.integers(-127, 128, (tiles * 16, cols)), rng.random((tiles, 16)).astype(np.float32)
    lines = lines_of(cpu, quads=True).pack(tokens.astype(np.int8).reshape(tiles, 16, cols).transpose(0, 2, 1))
    arrays = [lines.reshape(-1), scales, packed.values, packed.offsets, packed.bias, packed.scales, packed.starts]
    mask = np.zeros((len(columns), cols), np.int64)
    np.put_along_axis(mask, columns.astype(np.int64), valid.astype(np.int64), axis=1)
    assert (mask <= mask_of(columns, rows, cols)[::group]).all()
    steps = quantised(weight, row_scales(weight, dot.largest), dot.largest) * np.repeat(mask, group, axis=0)
    sums = (tokens @ steps.T.astype(np.int64)).astype(np.float64)
    want = np.maximum(sums * scales.reshape(-1, 1) * row_scales(weight, dot.largest) + bias, 0.0)
    got = run_linear(cpu, matrix, packing, tiles, arrays, activation="relu")
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("form", QUAD_FORMS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_quads_cost_less_than_any_columns_and_fewer_never_more(form, group):
    cpu, kept = core(*form), range(4, 385, 20)
    costs = [best_int8_cycles(cpu, MatrixShape(384, 384, k, group, True)) for k in kept]
    assert costs == sorted(costs)
    assert all(c < best_int8_cycles(cpu, MatrixShape(384, 384, k, group)) for c, k in zip(costs, kept, strict=True))


@pytest.mark.parametrize("form", QUAD_FORMS, ids=str)
@pytest.mark.parametrize("tokens", [TokenCount(1, 20), TokenCount(3, 100), TokenCount(1, 1)], ids=str)
def test_a_plan_says_that_it_reads_quads(form, tokens):
    cpu = replace(core(*form), costs=((FLOAT32, core(*form).cost(FLOAT32)), (INT8, core("sdot", 16).cost(INT8))))
    matrix = MatrixShape(128, 64, 20, 4, True)
    plan = plan_linear(cpu, matrix, tokens, INT8)
    assert plan.quantised is not None and plan.quantised.lines.quads and "_i8_v4q_r4" in str(plan)
    assert plan.weights["offsets"][0][1] * 4 == plan.weights["values"][0][1] * 4 == plan.parts[0].shape.kept
    assert LinearPlan.of(plan.to_attrs()) == plan and Quantised.of(plan.quantised.facts) == plan.quantised
    assert LinearTask.of(LinearTask(matrix, tokens, INT8).to_json()).matrix == matrix
    assert "quads" not in LinearTask(matrix.single, tokens, INT8).to_json()


def test_who_cannot_multiply_quads_takes_any_columns():
    """Kernels of float32, and cores that multiply pairs."""
    matrix, tokens = MatrixShape(128, 64, 20, 4, True), TokenCount(1, 32)
    assert plan_linear(core("sdot", 16), matrix, tokens) == plan_linear(core("sdot", 16), matrix.single, tokens)
    pairs = replace(
        core("smull", 16),
        costs=((FLOAT32, replace(core("smull", 16).cost(FLOAT32), fma=50.0)), (INT8, core("smull", 16).cost(INT8))),
    )
    plan = plan_linear(pairs, matrix, tokens, INT8)
    assert plan == plan_linear(pairs, matrix.single, tokens, INT8) and plan.family == "pattern_linear_int8"


@pytest.mark.parametrize("form", [form for form in HERE if form in QUAD_FORMS], ids=str)
def test_a_quad_is_an_operand(form):
    """The loop over kept quads touches no stack and mixes no vectors."""
    cpu = core(*form)
    for group in (1, 2, 4, 8):
        matrix = MatrixShape(256, 128, 32, group, True)
        packing = choose_int8_packing(cpu, matrix)
        found = list(kernels(cpu, int8_shape(cpu, matrix, packing, 8), packing))
        module = tvm.IRModule({str(i): with_c_signature(int8_kernel(k, cpu), f"k{i}") for i, k in enumerate(found)})
        code = machine_code(lower(module), CLUSTER.target_dict()).inspect_source("s").splitlines()
        dots = [line for line in code if f"\t{form[0]}" in line]
        assert dots and not [line for line in dots if "%rsp" in line or "[sp" in line]
        assert not [line for line in code if "\tvpunpck" in line or "\tzip" in line]
