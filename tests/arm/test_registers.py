"""What a core holds in registers stays there: no innermost loop of a linear layer stores to the stack."""

import re
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


@pytest.mark.parametrize(
    ("name", "features"), [("cortex-a7", "+neon,+vfp4"), ("cortex-a15", "+neon,+vfp4"), ("cortex-a9", "+neon")]
)
@pytest.mark.parametrize("group", arm.GROUPS)
def test_multiply_adds_take_a_lane_on_32_bit_arm(name, features, group):
    """Fused they take none, so that each weight costs a ``vdup``; without VFPv4 LLVM would call fmaf for each lane."""
    cluster = arm.cluster_of("A7")
    target = {**cluster.target_dict(), "mcpu": name, "mattr": features.split(",")}
    cluster = replace(cluster, core=name, target=tuple(target.items()))
    cpu = CpuShape.of(cluster)
    matrix = MatrixShape(32, 64, 16, group) if group else MatrixShape.dense_of(32, 64)
    plan = plan_linear(cpu, matrix, TokenCount(1, 32))
    with skips_without_tools():
        code = arm.code_of([kernel(plan.family, plan, plan.parts[0], "none", cpu)], cluster)
    (function,) = code.values()
    names = {one.name for one in function.instructions}
    multiplied = [one.operands for one in function.instructions if one.name == "vmla.f32"]
    assert multiplied and all(re.fullmatch(r"q\d+, q\d+, d\d+\[[01]\]", operands) for operands in multiplied)
    assert not names & {"vdup.32", "vfma.f32", "bl", "blx"}
