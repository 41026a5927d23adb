"""float16 for ARM: kernels under qemu and their code, and bundles that only a core with its arithmetic opens."""

import arm
import numpy as np
import pytest

from rt3_tvm import CompileOptions, compile
from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, FLOAT16
from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, plan_linear, plan_of_family
from rt3_tvm.schedules.packing import pack_linear
from tests.arm.conftest import skips_without_tools
from tests.arm.kernels import run_under_qemu
from tests.kernels.test_float16 import problem, rounded_sums

GROUPS = (0, 1, 2, 4, 8)
WITHOUT_SPILLS = {"A55": (0, 4, 8), "A76": GROUPS, "X1": (0, 2, 4, 8)}
"""V of the layers whose loops keep all in registers; 0: dense. Of the others LLVM moves one to three loads of X too far ahead."""


def test_each_sum_is_rounded_once(tmp_path):
    """Products are fused: the very numbers of NumPy, for every V, wide tiles and narrow ones."""
    cpu, calls, wanted = CpuShape.of(arm.cluster_of("A76")), [], []
    for group in GROUPS:
        for tokens in (TokenCount(1, 32), TokenCount(2, 7)):
            matrix = MatrixShape(48, 320, 300, group) if group else MatrixShape.dense_of(48, 320)
            family = "pattern_linear" if group else "dense_linear"
            plan = plan_of_family(family, cpu, matrix, tokens, FLOAT16)
            columns, weight, bias, x = arrays = problem(plan, matrix.kept)
            packed = pack_linear(weight, columns, np.ones_like(columns, np.bool_), bias, plan.packing, FLOAT16)
            y = np.full(FEATURE_MAJOR.shape(tokens.tiles(), matrix.rows), np.nan, np.float32)
            (part,) = plan.parts
            func = kernel(family, plan, part, "none", cpu)
            calls.append((family, func, [plan.layout.pack(x), packed.values, packed.offsets, packed.bias, y]))
            wanted.append((tokens, rounded_sums(plan, *arrays, fused=True)))
    with skips_without_tools():
        done = run_under_qemu("A76", calls, tmp_path)
    for (*_, y), (tokens, want) in zip(done, wanted, strict=True):
        np.testing.assert_array_equal(FEATURE_MAJOR.unpack(y, tokens.batch, tokens.length), want)


@pytest.mark.parametrize(("core", "group"), [(core, v) for core, groups in WITHOUT_SPILLS.items() for v in groups])
def test_inner_loops_multiply_by_lane_and_store_nothing(core, group):
    cluster = arm.cluster_of(core)
    cpu, kernels = CpuShape.of(cluster), []
    for rows, cols in ((384, 384), (1536, 384), (384, 1536)):
        matrix = MatrixShape(rows, cols, cols // 4, group) if group else MatrixShape.dense_of(rows, cols)
        plan = plan_linear(cpu, matrix, TokenCount(1, 128), FLOAT16)
        kernels += [kernel(plan.family, plan, part, "none", cpu) for part in plan.parts]
    with skips_without_tools():
        code = arm.code_of(kernels, cluster)
    assert len(code) == len(kernels)
    for function in code.values():
        assert function.loops and not function.stack_stores_in_loops
        multiplies = [one.operands for one in function.instructions if one.name == "fmla"]
        assert multiplies and all(".8h" in m and ".h[" in m for m in multiplies)


def test_a_bundle_is_right_on_its_core_and_refused_by_an_older_one(small_checkpoint, tmp_path):
    with skips_without_tools():
        options = CompileOptions("rk3588", cluster="big0", lengths=(20,), batch=2, dtype=("float16",))
        metadata = compile(small_checkpoint, tmp_path / "half.so", options).metadata
    assert "fullfp16" in metadata["cpu_features"]
    errors = [row["error"] for row in metadata["verified"]["emulated"]["errors"]]
    assert len(errors) == 2 and all(1e-5 < error < 2**-8 for error in errors)  # float16 it is, and right
    for device in ("rk3399", "odroid-xu3"):
        with pytest.raises(Rt3Error, match=r"dtype float16 is not for cortex-a\d+ of .*: choose from float32"):
            compile(small_checkpoint, tmp_path / "none.so", CompileOptions(device, lengths=(20,), dtype=("float16",)))
