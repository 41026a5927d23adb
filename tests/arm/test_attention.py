"""Attention for ARM, in float32 and float16: its numbers under qemu, and inner loops that store nothing to the stack."""

from dataclasses import replace

import arm
import numpy as np
import pytest

from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.schedules.attention_numpy import exact_attention, rounded_attention
from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FLOAT16
from tests.arm.conftest import skips_without_tools
from tests.arm.kernels import CORES, run_under_qemu
from tests.kernels.harness import from_tiles, to_tiles
from tests.kernels.test_attention import padding, reference
from tests.kernels.test_attention_float16 import ROUNDED, inputs_of

NO_BIAS = np.zeros((1, 1, 1), np.float32)
LARGE = AttentionShape(1, 128, 12, 32, 32**-0.5, key_bias=(1, 1))
SHAPES = (
    LARGE,
    AttentionShape(1, 32, 2, 64, 0.125, key_bias=(1, 1)),
    AttentionShape(2, 20, 3, 12, 0.3, key_bias=(2, 1)),
    AttentionShape(1, 40, 4, 16, 0.3, StaticMask.band(40, 40, 9, 0), kv_heads=2, v_dim=24, soft_cap=2.0),
)
FLOAT16_SHAPES = tuple(replace(shape, element=FLOAT16) for shape in SHAPES)


@pytest.mark.parametrize("core", CORES)
def test_numbers(rng, core, tmp_path):
    calls, wanted, cpu = [], [], CpuShape.of(arm.cluster_of(core))
    for shape in SHAPES:
        sizes = ((shape.length, shape.heads * shape.dim), (shape.keys, shape.kv_heads * shape.dim))
        sizes = (*sizes, (shape.keys, shape.kv_heads * shape.v_dim))
        tokens = [rng.standard_normal((shape.batch, *size)).astype(np.float32) for size in sizes]
        bias = padding(rng, shape.batch, 1, shape.keys) if shape.key_bias else np.zeros((1, 1, 1, 1), np.float32)
        wanted.append(reference(shape, *tokens, bias.astype(np.float64)))
        y = np.full_like(to_tiles(wanted[-1].astype(np.float32)), np.nan)
        calls.append(("attention", kernel("attention", shape, cpu), [*map(to_tiles, tokens), bias, NO_BIAS, y]))
    with skips_without_tools():
        done = run_under_qemu(core, calls, tmp_path)
    for shape, want, arrays in zip(SHAPES, wanted, done, strict=True):
        np.testing.assert_allclose(from_tiles(arrays[-1], shape.batch, shape.length), want, atol=3e-6, rtol=0)
        assert np.isfinite(arrays[-1]).all()


def test_float16_rounds_as_numpy_does(rng, tmp_path):
    """Multiply-adds are fused."""
    cpu, calls, shapes, every = CpuShape.of(arm.cluster_of("A76")), [], FLOAT16_SHAPES, []
    for shape in shapes:
        bias = padding(rng, shape.batch, 1, shape.keys) if shape.key_bias else None
        inputs = inputs_of(rng, shape, key_bias=bias)
        y = np.full((shape.batch * shape.tiles[0], shape.heads * shape.v_dim, 16), np.nan, np.float32)
        calls.append(("attention_float16", kernel("attention_float16", shape, cpu), [*inputs.__dict__.values(), y]))
        every.append(inputs)
    with skips_without_tools():
        done = run_under_qemu("A76", calls, tmp_path)
    for shape, inputs, arrays in zip(shapes, every, done, strict=True):
        exact, rounded = exact_attention(shape, inputs), rounded_attention(shape, inputs, 1, fused=True)
        largest = np.abs(exact).max()
        np.testing.assert_allclose(arrays[-1], rounded, atol=ROUNDED * largest, rtol=0)
        assert 1e-5 < np.abs(arrays[-1] - exact).max() <= 2.0**-7 * largest


@pytest.mark.parametrize("core", ["A55", "A76", "X1"])
def test_float16_multiplies_by_lane_and_stores_nothing(core):
    cluster = arm.cluster_of(core)
    cpu = CpuShape.of(cluster)
    with skips_without_tools():
        code = arm.code_of([kernel("attention_float16", shape, cpu) for shape in FLOAT16_SHAPES[:2]], cluster)
    assert len(code) == 2
    for function in code.values():
        assert function.loops and not function.stack_stores_in_loops
        multiplies = [one.operands for one in function.instructions if one.name == "fmla" and ".h[" in one.operands]
        assert multiplies and all(".8h" in m for m in multiplies)


@pytest.mark.parametrize("core", arm.CORES)
def test_no_inner_loop_stores_to_the_stack(core):
    cluster = arm.cluster_of(core)
    cpu = CpuShape.of(cluster)
    with skips_without_tools():
        code = arm.code_of([kernel("attention", shape, cpu) for shape in SHAPES[:2]], cluster)
    assert len(code) == 2 and all(function.loops for function in code.values())
    assert {symbol: f.stack_stores_in_loops for symbol, f in code.items() if f.stack_stores_in_loops} == {}
