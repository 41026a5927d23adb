"""What a core holds in registers stays there: no innermost loop of a linear layer stores to the stack."""

from dataclasses import replace

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


@pytest.mark.parametrize(("features", "fused"), [(("+neon", "+vfp4"), True), (("+neon",), False)])
def test_multiply_adds_are_fused_where_the_core_can(features, fused):
    """Without VFPv4, as on Cortex-A9, LLVM would call fmaf for each lane."""
    cluster = arm.cluster_of("A7")
    core = "cortex-a7" if fused else "cortex-a9"
    target = {**cluster.target_dict(), "mcpu": core, "mattr": features}
    cluster = replace(cluster, core=core, target=tuple(target.items()))
    cpu = CpuShape.of(cluster)
    plan = plan_linear(cpu, MatrixShape(32, 64, 16, 4), TokenCount(1, 32))
    with skips_without_tools():
        code = arm.code_of([kernel(plan.family, plan, plan.parts[0], "none", cpu)], cluster)
    (function,) = code.values()
    names = {one.name for one in function.instructions}
    assert ("vfma.f32" in names) == fused and not names & {"bl", "blx"}
