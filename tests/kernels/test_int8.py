"""Kernels of int8 against integers in NumPy: the quantiser, every dot product that this machine has, at the extremes too."""

import numpy as np
import pytest
import tvm

from rt3_tvm.bench.kernel import aligned
from rt3_tvm.codegen.kernels import lower, machine_code, with_c_signature
from rt3_tvm.schedules import SCHEDULES, kernel
from rt3_tvm.schedules.cpu import DOT_COSTS, CpuShape, features_of
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.few_tokens_int8 import few_int8_kernel
from rt3_tvm.schedules.int8_linear import int8_kernel
from rt3_tvm.schedules.int8_lines import Lines
from rt3_tvm.schedules.int8_packing import pack_int8, quantised, row_scales, static_factors
from rt3_tvm.schedules.int8_plan import (
    best_int8_cycles,
    choose_int8_packing,
    few_kernel,
    int8_shape,
    kernels,
    lines_of,
    quantised_for,
    split_lines,
)
from rt3_tvm.schedules.layout import FLOAT32, INT8
from rt3_tvm.schedules.linear_decisions import LinearPacking, MatrixShape
from rt3_tvm.schedules.quantise import QuantiseShape
from tests.kernels.harness import CLUSTER, CPU, run_kernel

FORMS = [
    ("sdot", 16),
    ("smull", 16),
    ("vmull", 16),
    ("vpdpbusd", 32),
    ("vpdpbusd", 64),
    ("vpmaddubsw", 32),
    ("vpmaddubsw", 64),
]
"""Every dot product with its bytes: where this machine lacks the instruction it runs spelt out."""
NATIVE = {
    ("vpdpbusd", 64): {"avx512vnni", "avx512bw"},
    ("vpdpbusd", 32): {"avx512vnni", "avx512vl"},
    ("vpmaddubsw", 32): {"avx2"},
    ("vpmaddubsw", 64): {"avx512bw"},
    ("sdot", 16): {"dotprod"},
    ("smull", 16): {"fp-armv8"},
}
"""Features of a machine that has it."""
GROUPED = [
    (form, group)
    for form in FORMS
    for group in ((1, 2, 4, 8, 0) if form in (("sdot", 16), ("vpdpbusd", 64)) else (1, 4, 0))
]
"""Forms with the rows that keep the same columns; 0: all of them."""
HERE = sorted(form for form, needed in NATIVE.items() if needed <= features_of(CLUSTER.target_dict()))


def core(dot: str, vector_bytes: int) -> CpuShape:
    """Return a core that has a dot product."""
    costs = ((FLOAT32, CPU.cost(FLOAT32)), (INT8, DOT_COSTS[dot]))
    registers = 32 if vector_bytes != 32 else 16
    return CpuShape(vector_bytes, registers, CPU.l1d_bytes, CPU.l2_bytes, costs, CPU.by_lane, dot=dot)


def pack(cpu, weight, columns, packing, bias=None):
    return pack_int8(weight, columns, np.ones_like(columns, np.bool_), bias, packing, DOT_PRODUCTS[cpu.dot])


def columns_of(rng, rows, cols, kept, group):
    if group == rows:
        return np.arange(cols, dtype=np.int32)[None]
    order = rng.permuted(np.tile(np.arange(cols), (rows // group, 1)), axis=1)
    return np.sort(order[:, :kept], axis=1).astype(np.int32)


def mask_of(columns, rows, cols):
    mask = np.zeros((len(columns), cols), np.int64)
    np.put_along_axis(mask, columns.astype(np.int64), 1, axis=1)
    return np.repeat(mask, rows // len(columns), axis=0)


def run_linear(cpu, matrix, packing, tiles, arrays, decisions=None, activation="none"):
    """Run the kernels of a matrix, each part of the tiles with the cheapest register block, or that of a choice."""
    shape = int8_shape(cpu, matrix, packing, tiles)
    y = aligned(np.full((tiles, matrix.rows, 16), np.nan, np.float32))
    for part in split_lines(lines_of(cpu), shape):
        found = list(kernels(cpu, part, packing, activation))
        chosen = [k for k in found if decisions is None or k.decisions.vectors == decisions] or found[-1:]
        run_kernel("pattern_linear_int8", int8_kernel(chosen[-1], cpu), *map(aligned, arrays), y)
    return y.transpose(0, 2, 1).reshape(tiles * 16, matrix.rows)


def exact(cpu, tokens, numbers, columns, packing, lines=None, quads=False):
    """Return what a kernel with scales of one computes, and the sums in integers; tokens (tokens, cols), numbers (rows, cols)."""
    (count, cols), rows = tokens.shape, len(numbers)
    tiles = -(-count // 16)
    padded = np.zeros((tiles * 16, cols), np.int8)
    padded[:count] = tokens
    packed = pack_int8(
        numbers.astype(np.float32),
        columns,
        np.ones_like(columns, np.bool_),
        None,
        packing,
        DOT_PRODUCTS[cpu.dot],
        np.ones(rows, np.float32),
        quads,
    )
    lines = (lines or lines_of(cpu, quads=quads)).pack(padded.reshape(tiles, 16, cols).transpose(0, 2, 1))
    matrix = MatrixShape(rows, cols, columns.shape[1], rows // len(columns), quads)
    ones = np.ones((tiles, 16), np.float32)
    arrays = [lines.reshape(-1), ones, packed.values, packed.offsets, packed.bias, packed.scales, packed.starts]
    want = padded.astype(np.int64) @ (numbers * mask_of(columns, rows, cols)).T
    return matrix, tiles, arrays, want


@pytest.mark.parametrize("tokens", [16, 32, 64])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("tiles", [1, 3, 4, 13])
def test_lines_round_trip(rng, tokens, unsigned, tiles):
    lines = Lines(tokens, unsigned)
    numbers = rng.integers(-127, 128, (tiles, 5, 16)).astype(np.int8)
    packed = lines.pack(numbers)
    assert packed.shape == lines.shape(tiles, 5) and sorted(lines.order) == list(range(tokens))
    np.testing.assert_array_equal(lines.unpack(packed, tiles), numbers)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("tiles", "features"), [(1, 7), (3, 20), (8, 64), (13, 33)])
def test_quantise(rng, form, tiles, features):
    cpu = core(*form)
    x = rng.standard_normal((tiles, features, 16)).astype(np.float32) * 10.0 ** rng.integers(-3, 4, (tiles, 1, 16))
    x = x.astype(np.float32)
    x[0, :, 3] = 0.0
    shape = QuantiseShape(tiles, features, lines_of(cpu), cpu.dot)
    y, scales = np.zeros(shape.lines.shape(tiles, features), np.int8), np.full((tiles, 16), np.nan, np.float32)
    run_kernel("quantise", kernel("quantise", shape), *(arrays := list(map(aligned, (x, y, scales)))))
    steps, scales = shape.lines.unpack(arrays[1], tiles), arrays[2]
    largest = np.abs(x).max(axis=1)
    np.testing.assert_allclose(scales[largest > 0], (largest / 127)[largest > 0], rtol=1e-6)
    wanted = x.astype(np.float64) / scales[:, None]
    assert np.abs(steps - wanted).max() <= 0.5 + 1e-4 and not steps[0, :, 3].any()
    assert (np.abs(steps).max(axis=1)[largest > 0] == 127).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rounding_is_that_of_torch(form):
    """Ties go to the even number, as in fake quantisation."""
    import torch

    cpu = core(*form)
    x = np.zeros((1, 256, 16), np.float32)
    x[0, :, :] = np.arange(-127.0, 129.0)[:, None] - 0.5
    x[0, 0], x[0, -1] = 127.0, -127.0
    shape = QuantiseShape(1, 256, lines_of(cpu), cpu.dot)
    arrays = [*map(aligned, (x, np.zeros(shape.lines.shape(1, 256), np.int8), np.zeros((1, 16), np.float32)))]
    run_kernel("quantise", kernel("quantise", shape), *arrays)
    want = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), 1.0, 0, -127, 127).numpy()
    np.testing.assert_array_equal(shape.lines.unpack(arrays[1], 1), want)


def test_what_is_no_number_is_not_lost():
    """A token with a NaN or an infinity gets a scale that says so."""
    x = np.ones((1, 8, 16), np.float32)
    x[0, 2, 1], x[0, 5, 2] = np.nan, np.inf
    shape = QuantiseShape(1, 8, lines_of(CPU), CPU.dot)
    arrays = [*map(aligned, (x, np.zeros(shape.lines.shape(1, 8), np.int8), np.zeros((1, 16), np.float32)))]
    run_kernel("quantise", kernel("quantise", shape), *arrays)
    assert np.flatnonzero(~np.isfinite(arrays[2][0])).tolist() == [1, 2]


@pytest.mark.parametrize(("form", "group"), GROUPED, ids=str)
def test_sums_are_exact(rng, form, group):
    """Every register block that the planner may choose, with numbers over the whole range."""
    cpu, dot, rows, cols = core(*form), DOT_PRODUCTS[form[0]], 16, 40
    columns = columns_of(rng, rows, cols, 27, group or rows)
    most = min(group or rows, 8)
    packings = [LinearPacking(most, 1, 1), LinearPacking(max(1, most // 2), 1, 2), LinearPacking(most, 1, 4)]
    for packing in packings if group in (0, 4) else packings[1:]:
        tokens = rng.integers(-127, 128, (130, cols)).astype(np.int8)
        numbers = rng.integers(-dot.largest, dot.largest + 1, (rows, cols))
        matrix, tiles, arrays, want = exact(cpu, tokens, numbers, columns, packing)
        shape = int8_shape(cpu, matrix, packing, tiles // lines_of(cpu).tiles * lines_of(cpu).tiles)
        for vectors in {k.decisions.vectors for k in kernels(cpu, shape, packing)}:
            np.testing.assert_array_equal(run_linear(cpu, matrix, packing, tiles, arrays, vectors), want)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_do_not_saturate(form, sign):
    """Every product at its largest, of either sign."""
    cpu, largest, rows, cols = core(*form), DOT_PRODUCTS[form[0]].largest, 8, 64
    columns = np.arange(cols, dtype=np.int32)[None]
    for token in (127, -127):
        tokens, numbers = np.full((64, cols), token, np.int8), np.full((rows, cols), sign * largest)
        matrix, tiles, arrays, want = exact(cpu, tokens, numbers, columns, LinearPacking(4, 1, 1))
        assert abs(want).min() == 127 * largest * cols
        np.testing.assert_array_equal(run_linear(cpu, matrix, LinearPacking(4, 1, 1), tiles, arrays), want)


def few_kernels(cpu, matrix, packing, length, activation="none"):
    """Return every kernel for a handful of tokens: their families, functions, and how many tokens each serves."""
    read = quantised_for(cpu, length, quads=matrix.quads)
    shape = int8_shape(cpu, matrix, packing, 1)
    found = [
        ("pattern_linear_int8", int8_kernel(k, cpu), read.served)
        for k in kernels(cpu, shape, packing, activation, read)
    ]
    few = few_kernel(cpu, shape, packing, length, activation)
    if few:
        found.append(("few_token_linear_int8", few_int8_kernel(few, cpu), length))
    return found


def run_few(cpu, matrix, packing, length, arrays, activation="none"):
    """Yield what each kernel for a handful of tokens computes, as (tokens, rows), and how many of them it serves."""
    for family, func, served in few_kernels(cpu, matrix, packing, length, activation):
        y = aligned(np.full((1, matrix.rows, 16), np.nan, np.float32))
        run_kernel(family, func, *map(aligned, arrays), y)
        yield y[0].T, served


@pytest.mark.parametrize(("form", "group"), GROUPED, ids=str)
def test_sums_of_a_handful_of_tokens_are_exact(rng, form, group):
    """Lanes that hold none are zeros, whatever lies there."""
    cpu, dot, rows, cols = core(*form), DOT_PRODUCTS[form[0]], 16, 40
    columns = columns_of(rng, rows, cols, 27, group or rows)
    packing = LinearPacking(min(group or rows, 8), 1, 2)
    families = set()
    for length in (1, 4, 5, 12):
        tokens = rng.integers(-127, 128, (16, cols)).astype(np.int8)
        numbers = rng.integers(-dot.largest, dot.largest + 1, (rows, cols))
        tokens[0], numbers[:8] = rng.choice([-127, 127]), dot.largest
        matrix, _, arrays, want = exact(cpu, tokens, numbers, columns, packing, quantised_for(cpu, length).lines)
        for got, served in run_few(cpu, matrix, packing, length, arrays):
            np.testing.assert_array_equal(got[:served], want[:served])
            assert not got[served:].any() and length <= served < length + 16
        families |= {family for family, _, _ in few_kernels(cpu, matrix, packing, length)}
    assert ("few_token_linear_int8" in families) == (packing.rows % 4 == 0)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_random_shapes_of_a_handful_of_tokens(form, seed):
    """Rows and columns that are multiples of nothing, with scales, bias and a long activation."""
    rng = np.random.default_rng(100 + seed)
    cpu, dot, group, length = core(*form), DOT_PRODUCTS[form[0]], int(rng.choice([4, 8])), int(rng.integers(1, 9))
    rows, cols = group * int(rng.integers(1, 6)), int(rng.integers(5, 100))
    columns = columns_of(rng, rows, cols, int(rng.integers(1, cols + 1)), group)
    weight, bias = rng.standard_normal((rows, cols)).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    matrix = MatrixShape(rows, cols, columns.shape[1], rows // len(columns))
    packed = pack(cpu, weight, columns, packing := LinearPacking(4, 1, 1), bias)
    tokens, scales = rng.integers(-127, 128, (16, cols)), rng.random((1, 16)).astype(np.float32) / 100
    lines = quantised_for(cpu, length).lines.pack(tokens.astype(np.int8).T[None])
    arrays = [lines.reshape(-1), scales, packed.values, packed.offsets, packed.bias, packed.scales, packed.starts]
    steps = quantised(weight, row_scales(weight, dot.largest), dot.largest) * mask_of(columns, rows, cols)
    sums = (tokens @ steps.T.astype(np.int64)).astype(np.float64)
    want = np.tanh(sums * scales.reshape(-1, 1) * row_scales(weight, dot.largest) + bias)
    done = list(run_few(cpu, matrix, packing, length, arrays, "tanh"))
    assert done
    for got, served in done:
        np.testing.assert_allclose(got[:served], want[:served], atol=2e-6, rtol=0)
        assert not got[served:].any()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", ["quantise", "quantise_static"])
@pytest.mark.parametrize("length", [1, 5, 8, 13])
def test_a_handful_of_tokens_is_quantised(rng, form, family, length):
    """The others become zeros, whatever lies there."""
    cpu, features = core(*form), 37
    shape = QuantiseShape.of(1, features, quantised_for(cpu, length))
    x = rng.standard_normal((1, features, 16)).astype(np.float32)
    x[:, :, shape.served :] = np.nan
    inputs = [x] if family == "quantise" else [x, static_factors(np.abs(x[0, :, : shape.served]).max(axis=1))]
    wanted = SCHEDULES[family].reference(shape, *inputs)
    arrays = [*map(aligned, (*inputs, np.full_like(wanted[0], 99), np.full((1, 16), np.nan, np.float32)))]
    run_kernel(family, kernel(family, shape), *arrays)
    np.testing.assert_array_equal(arrays[-2], wanted[0])
    np.testing.assert_allclose(arrays[-1], wanted[1], rtol=1e-6)
    assert length <= shape.served <= 16 and np.isfinite(arrays[-1]).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(form, seed):
    """Rows, columns and tokens that are multiples of nothing, with scales, bias and an activation."""
    rng = np.random.default_rng(seed)
    cpu, dot = core(*form), DOT_PRODUCTS[form[0]]
    group = int(rng.choice([1, 2, 3, 4, 8]))
    rows, cols, tiles = group * int(rng.integers(1, 12)), int(rng.integers(5, 200)), int(rng.integers(1, 14))
    kept = int(rng.integers(1, cols + 1))
    columns = columns_of(rng, rows, cols, kept, group)
    weight, bias = rng.standard_normal((rows, cols)).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    matrix = MatrixShape(rows, cols, columns.shape[1], rows // len(columns))
    packing = choose_int8_packing(cpu, matrix)
    packed = pack(cpu, weight, columns, packing, bias)
    tokens, scales = rng.integers(-127, 128, (tiles * 16, cols)), rng.random((tiles, 16)).astype(np.float32)
    lines = lines_of(cpu).pack(tokens.astype(np.int8).reshape(tiles, 16, cols).transpose(0, 2, 1))
    arrays = [lines.reshape(-1), scales, packed.values, packed.offsets, packed.bias, packed.scales, packed.starts]
    steps = quantised(weight, row_scales(weight, dot.largest), dot.largest) * mask_of(columns, rows, cols)
    sums = (tokens @ steps.T.astype(np.int64)).astype(np.float64)
    want = np.maximum(sums * scales.reshape(-1, 1) * row_scales(weight, dot.largest) + bias, 0.0)
    got = run_linear(cpu, matrix, packing, tiles, arrays, activation="relu")
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max(), rtol=0)


def test_weights_are_rounded_to_the_steps_of_their_row(rng):
    weight = rng.standard_normal((6, 50)).astype(np.float32)
    weight[2] = 0.0
    for largest in (63, 127):
        scales = row_scales(weight, largest)
        steps = quantised(weight, scales, largest)
        assert np.abs(steps).max() == largest and not steps[2].any() and scales[2] == 1.0
        assert (np.abs(steps * scales[:, None] - weight) <= scales[:, None] * 0.5001).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_keeping_fewer_columns_never_costs_more(form, group):
    cpu = core(*form)
    costs = [best_int8_cycles(cpu, MatrixShape(384, 384, kept, group)) for kept in range(1, 385, 7)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("form", HERE, ids=str)
def test_accumulators_stay_in_registers(form):
    """The loop over kept columns must not touch the stack."""
    cpu = core(*form)
    for group in (1, 2, 4, 8, 256):
        matrix = MatrixShape(256, 128, 128 if group == 256 else 32, group)
        packing = choose_int8_packing(cpu, matrix)
        found = list(kernels(cpu, int8_shape(cpu, matrix, packing, 8), packing))
        module = tvm.IRModule({str(i): with_c_signature(int8_kernel(k, cpu), f"k{i}") for i, k in enumerate(found)})
        code = machine_code(lower(module), CLUSTER.target_dict()).inspect_source("s")
        dots = [line for line in code.splitlines() if f"\t{form[0]}" in line]
        assert dots and not [line for line in dots if "%rsp" in line or "[sp" in line]
