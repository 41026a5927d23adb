"""What a core holds in registers stays there: no innermost loop of a linear layer stores to the stack."""

import arm
import pytest

from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, plan_linear
from tests.arm.conftest import skips_without_tools

TOKENS = (32, 128)
SIDES = ((384, 384), (1536, 384), (384, 1536))


def linears(cpu, group):
    for rows, cols in SIDES:
        for tokens in TOKENS:
            matrix = MatrixShape(rows, cols, cols // 4, group) if group else MatrixShape.dense_of(rows, cols)
            plan = plan_linear(cpu, matrix, TokenCount(1, tokens))
            yield from (kernel(plan.family, plan, part, "none", cpu) for part in plan.parts)


@pytest.mark.parametrize("group", arm.GROUPS)
@pytest.mark.parametrize("core", arm.CORES)
def test_no_inner_loop_of_a_linear_layer_stores_to_the_stack(core, group):
    cluster = arm.cluster_of(core)
    with skips_without_tools():
        code = arm.code_of(linears(CpuShape.of(cluster), group), cluster)
    assert len(code) == len(SIDES) * len(TOKENS) and all(function.loops for function in code.values())
    assert {symbol: f.stack_stores_in_loops for symbol, f in code.items() if f.stack_stores_in_loops} == {}
