"""The feature-major layout and element types as values."""

from dataclasses import replace

import numpy as np
import pytest

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, FLOAT16, FLOAT32, FeatureMajor
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import LinearPlan, TokenCount, plan_linear

LAYOUTS = [FEATURE_MAJOR, FeatureMajor(token_tile=8), FeatureMajor(FLOAT32, 16, 4), FeatureMajor(FLOAT16, 32, 2)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("batch", "length"), [(1, 32), (2, 7), (3, 20)])
def test_each_number_lies_where_the_layout_says(rng, layout, batch, length):
    features = 12
    x = rng.standard_normal((batch, length, features)).astype(layout.element.dtype)
    tiled = layout.pack(x)
    tiles = layout.tiles(length)
    assert tiled.shape == layout.shape(batch * tiles, features) and tiled.dtype == x.dtype
    flat = tiled.reshape(batch * tiles, features // layout.interleave, layout.token_tile, layout.interleave)
    for b, t, f in ((0, 0, 0), (batch - 1, length - 1, features - 1), (0, length // 2, 5)):
        tile, lane = divmod(t, layout.token_tile)
        group, inside = divmod(f, layout.interleave)
        assert flat[b * tiles + tile, group, lane, inside] == x[b, t, f]
    np.testing.assert_array_equal(layout.unpack(tiled, batch, length), x)
    assert np.count_nonzero(tiled) == np.count_nonzero(x)  # what pads a tile is zero


def test_a_core_has_lanes_and_costs_by_element_type():
    cpu = CpuShape(16, 32, 65536)
    assert cpu.lanes(FLOAT32) == 4 and cpu.lanes(FLOAT16) == 8
    assert cpu.cost(FLOAT32).fma > 0
    with pytest.raises(KeyError):
        cpu.cost(FLOAT16)


def test_a_plan_is_of_the_element_type_that_was_asked_for():
    cpu = CpuShape(16, 32, 65536)
    both = replace(cpu, costs=(*cpu.costs, (FLOAT16, replace(cpu.cost(FLOAT32), fma=0.3))))
    tokens, matrix = TokenCount(1, 128), MatrixShape(768, 3072, 768, 4)
    plan = plan_linear(both, matrix, tokens, FLOAT16)
    assert plan.element == plan.layout.element == FLOAT16 and "_f16_" in str(plan)
    assert plan_linear(both, matrix, tokens) == plan_linear(cpu, matrix, tokens)
    assert plan_linear(cpu, matrix, tokens, FLOAT16) == plan_linear(cpu, matrix, tokens)  # which has none of it
    assert LinearPlan.of(plan.to_attrs()) == plan
