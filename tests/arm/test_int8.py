"""Kernels of int8 for ARM under qemu, on the core itself: with dot products, without, and on 32-bit ARM."""

from itertools import product

import arm
import numpy as np
import pytest

from rt3_tvm.schedules import KERNEL_ATTR, SCHEDULES, kernel
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.examples import SMALL
from rt3_tvm.schedules.int8_linear import int8_kernel
from rt3_tvm.schedules.int8_plan import choose_int8_packing, int8_cycles, int8_shape, kernels, takes_quads
from rt3_tvm.schedules.layout import INT8
from rt3_tvm.schedules.linear_decisions import LinearPacking, MatrixShape
from rt3_tvm.schedules.linear_plan import TokenCount, plan_of_family
from tests.arm.conftest import skips_without_tools
from tests.arm.kernels import CORES, run_under_qemu
from tests.kernels.test_int8 import columns_of, exact, few_kernels
from tests.kernels.test_quads import quads_of

DOTS = {"A76": "sdot", "A53": "smull", "A7": "vmull"}


@pytest.mark.parametrize("core", CORES)
def test_rows_compute_their_references(core, tmp_path):
    cpu, calls, wanted = CpuShape.of(arm.cluster_of(core)), [], []
    assert cpu.dot == DOTS[core]
    families = ("quantise", "quantise_static", "pattern_linear_int8", "dense_linear_int8", "few_token_linear_int8")
    for family in (*families, *(("quad_linear_int8",) if takes_quads(cpu) else ())):
        example = SCHEDULES[family].example(cpu, SMALL)
        func = kernel(family, *example.arguments)
        outputs = [np.zeros([int(d) for d in p.ty.shape], str(p.ty.dtype)) for p in func.params[len(example.inputs) :]]
        calls.append((family, func, [*example.inputs, *outputs]))
        wanted.append(SCHEDULES[family].reference(*example.arguments, *example.inputs))
    with skips_without_tools():
        done = run_under_qemu(core, calls, tmp_path)
    for got, want in zip(done, wanted, strict=True):
        for a, b in zip(got[-len(want) :], want, strict=True):
            assert np.abs(a).any()
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("core", CORES)
def test_sums_are_exact(rng, core, tmp_path):
    """Every register block of every V, with numbers over the whole range and at its ends."""
    cpu, rows, cols = CpuShape.of(arm.cluster_of(core)), 16, 40
    largest = DOT_PRODUCTS[cpu.dot].largest
    calls, wanted = [], []
    for group, quads in (
        *((v, False) for v in (1, 2, 4, 8, rows)),
        *((v, True) for v in (1, 2, 4, 8) if takes_quads(cpu)),
    ):
        columns = quads_of(rng, rows, cols, 7, group) if quads else columns_of(rng, rows, cols, 27, group)
        tokens = rng.integers(-127, 128, (64, cols)).astype(np.int8)
        numbers = rng.integers(-largest, largest + 1, (rows, cols))
        tokens[:20], numbers[:8] = -127, largest
        packing = choose_int8_packing(cpu, MatrixShape(rows, cols, columns.shape[1], group, quads))
        matrix, tiles, arrays, want = exact(cpu, tokens, numbers, columns, packing, quads=quads)
        for k in kernels(cpu, int8_shape(cpu, matrix, packing, tiles), packing):
            y = np.full((tiles, rows, 16), np.nan, np.float32)
            calls.append(("pattern_linear_int8", int8_kernel(k, cpu), [*arrays, y]))
            wanted.append(want)
    with skips_without_tools():
        done = run_under_qemu(core, calls, tmp_path)
    assert len(done) > 5
    for arrays, want in zip(done, wanted, strict=True):
        np.testing.assert_array_equal(arrays[-1].transpose(0, 2, 1).reshape(want.shape), want)


@pytest.mark.parametrize("core", CORES)
def test_sums_of_a_handful_of_tokens_are_exact(rng, core, tmp_path):
    """Every kernel of every V for them, with numbers over the whole range and at its ends; lanes that hold none are zeros."""
    cpu, rows, cols = CpuShape.of(arm.cluster_of(core)), 16, 40
    largest = DOT_PRODUCTS[cpu.dot].largest
    calls, wanted = [], []
    any_columns = [(v, n, False) for v, n in ((1, 2), (4, 1), (4, 5), (8, 1), (8, 3), (rows, 2), (rows, 8))]
    in_quads = [(v, n, True) for v, n in ((1, 2), (4, 1), (4, 5), (8, 3)) if takes_quads(cpu)]
    for group, length, quads in (*any_columns, *in_quads):
        columns = quads_of(rng, rows, cols, 7, group) if quads else columns_of(rng, rows, cols, 27, group)
        tokens = rng.integers(-127, 128, (16, cols)).astype(np.int8)
        numbers = rng.integers(-largest, largest + 1, (rows, cols))
        tokens[0], numbers[:8] = -127, largest
        packing = LinearPacking(min(group, 4), 1, 2)
        matrix, _, arrays, want = exact(cpu, tokens, numbers, columns, packing, quads=quads)
        for family, func, served in few_kernels(cpu, matrix, packing, length):
            calls.append((family, func, [*arrays, np.full((1, rows, 16), np.nan, np.float32)]))
            wanted.append(np.where(np.arange(16)[:, None] < served, want, 0))
    assert sum(family == "few_token_linear_int8" for family, _, _ in calls) >= 3
    with skips_without_tools():
        done = run_under_qemu(core, calls, tmp_path)
    for arrays, want in zip(done, wanted, strict=True):
        np.testing.assert_array_equal(arrays[-1][0].T, want)


@pytest.mark.parametrize("group", [0, 4, 8])
@pytest.mark.parametrize("core", ["A76", "A53"])
def test_a_loop_for_one_token_stores_nothing_to_the_stack(core, group):
    """However few columns are kept; a store may say how often a loop runs, which LLVM is not to know."""
    cluster = arm.cluster_of(core)
    cpu = CpuShape.of(cluster)
    for kept in (40, 96):
        matrix = MatrixShape(384, 384, kept, group) if group else MatrixShape.dense_of(384, 384)
        plan = plan_of_family("few_token_linear_int8", cpu, matrix, TokenCount(1, 1), INT8)
        with skips_without_tools():
            func = kernel(plan.family, plan, plan.parts[0], "none", cpu)
            (function,) = arm.code_of([func], cluster).values()
        assert function.loops and function.stack_stores_in_loops <= 1
        assert any(one.name == cpu.dot for one in function.instructions)


@pytest.mark.parametrize(
    ("core", "group", "quads"),
    [
        *product(["A76", "A55", "X1", "A53"], [0, 1, 2, 4, 8], [False]),
        *product(["A76", "A55", "X1"], [1, 2, 4, 8], [True]),
    ],
)
def test_no_inner_loop_stores_to_the_stack(core, group, quads):
    cluster = arm.cluster_of(core)
    cpu = CpuShape.of(cluster)
    for rows, cols in ((384, 384), (1536, 384), (384, 1536)):
        matrix = MatrixShape(rows, cols, cols // 4, group, quads) if group else MatrixShape.dense_of(rows, cols)
        packing = choose_int8_packing(cpu, matrix)
        shape = int8_shape(cpu, matrix, packing, 8)
        best = min(kernels(cpu, shape, packing), key=lambda k: int8_cycles(cpu, k))
        with skips_without_tools():
            marked = int8_kernel(best, cpu).with_attr(KERNEL_ATTR, "pattern_linear_int8")
            (function,) = arm.code_of([marked], cluster).values()
        assert function.loops and not function.stack_stores_in_loops
        assert any(one.name == cpu.dot for one in function.instructions)
        assert not quads or not any(one.stem.startswith("zip") for one in function.instructions)
