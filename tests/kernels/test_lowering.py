"""Kernels are lowered once for all targets: each object is, byte for byte, the one that TVM makes for its target by itself."""

import re

import arm
import pytest
import tvm
from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

from rt3_tvm import device as devices
from rt3_tvm.codegen.by_lane import LoadByLane
from rt3_tvm.codegen.kernels import KeepOnStack, KernelTable, write_object
from rt3_tvm.codegen.portable import ARM_32, architecture
from rt3_tvm.codegen.vmla import multiplied_by_lane
from rt3_tvm.schedules import BY_LANE_ATTR, SCHEDULES, kernel, scheduled
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.examples import SMALL

HOST = devices.load("host").cluster
OF_ONE_ARCHITECTURE = re.compile(r"llvm\.(aarch64|arm|x86)")
CLUSTERS = {"host": HOST, "A76": arm.cluster_of("A76"), "A7": arm.cluster_of("A7")}


def table_for(cluster, target):
    """Return the kernels of every family as they are scheduled for a core, but for those that LLVM compiles for no other one."""
    cpu, table = CpuShape.of(cluster), KernelTable()
    for family, row in SCHEDULES.items():
        func = scheduled(kernel(family, *row.example(cpu, SMALL).arguments), cpu)
        if target is cluster or not OF_ONE_ARCHITECTURE.search(func.script()):
            table.index(func)
    return table


def whole_pipeline():
    lower, last, device = get_tir_pipeline("s_tir")
    return lower, lambda: tvm.transform.Sequential([LoadByLane(), KeepOnStack(), last()]), device


@pytest.mark.parametrize("core", CLUSTERS)
def test_lowering_asks_nothing_of_the_target(tmp_path, core):
    """Kernels for a core, compiled for it and then for this machine, as a bundle's host twin is."""
    register_tir_pipeline("test.whole", whole_pipeline)
    for cluster in {CLUSTERS[core].name: CLUSTERS[core], HOST.name: HOST}.values():
        table, target = table_for(CLUSTERS[core], cluster), cluster.target_dict()
        assert len(table.kernels) > 9
        table.compile(target, tmp_path / "ours.o")
        by_lane = any(BY_LANE_ATTR in func.attrs for func in table.functions)
        with tvm.transform.PassContext(config={"tirx.disable_cse_tir": by_lane}):
            whole = tvm.compile(table.module(), target=tvm.target.Target(target), tir_pipeline="test.whole").mod
        if architecture(target) == ARM_32:
            whole = multiplied_by_lane(whole)
        write_object(whole, tmp_path / "whole.o")
        assert (tmp_path / "ours.o").read_bytes() == (tmp_path / "whole.o").read_bytes()
