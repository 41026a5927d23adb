"""What a core holds in registers stays there: no innermost loop of a linear layer stores to the stack."""

import pytest

from rt3_tvm import device as devices
from rt3_tvm.bench.arm_code import disassemble
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.schedules import kernel, scheduled
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, plan_linear
from tests.arm.conftest import skips_without_tools

CORES = {
    "A7": ("odroid-xu3", "LITTLE"),
    "A53": ("rk3399", "little"),
    "A55": ("rk3588", "little"),
    "A76": ("rk3588", "big0"),
    "X1": ("pixel6", "big"),
}
DENSE = 0
GROUPS = (DENSE, 1, 2, 4)
TOKENS = (32, 128)
SIDES = ((384, 384), (1536, 384), (384, 1536))


def cluster_of(core):
    device, name = CORES[core]
    return next(cluster for cluster in devices.load(device).clusters if cluster.name == name)


def table_of(kernels, cpu):
    table = KernelTable()
    for func in kernels:
        table.index(scheduled(func, cpu))
    return table


def linears(cpu, group):
    for rows, cols in SIDES:
        for tokens in TOKENS:
            matrix = MatrixShape(rows, cols, cols // 4, group) if group else MatrixShape.dense_of(rows, cols)
            plan = plan_linear(cpu, matrix, TokenCount(1, tokens))
            yield from (kernel(plan.family, plan, part, "none", cpu) for part in plan.parts)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("core", CORES)
def test_no_inner_loop_of_a_linear_layer_stores_to_the_stack(core, group, tmp_path):
    cluster = cluster_of(core)
    cpu = CpuShape.of(cluster)
    table = table_of(linears(cpu, group), cpu)
    assert len(table.kernels) == len(SIDES) * len(TOKENS)
    stores = stores_of(table, cluster, tmp_path)
    assert {k.symbol: stores[k.symbol] for k in table.kernels if stores[k.symbol]} == {}


def stores_of(table, cluster, folder):
    """Return how many instructions of each function's innermost loops store to the stack."""
    target = cluster.target_dict()
    table.compile(target, folder / "kernels.o")
    wide = str(target["mtriple"]).startswith("aarch64")
    with skips_without_tools():
        code = disassemble(folder / "kernels.o", "aarch64-linux-gnu" if wide else "arm-linux-gnueabihf")
    assert any(function.loops for function in code)
    return {function.symbol: function.stack_stores_in_loops for function in code}
