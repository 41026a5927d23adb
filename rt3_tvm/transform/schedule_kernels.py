"""Phase 6: schedule every kernel by its row of SCHEDULES."""

import tvm
from tvm import IRModule, tirx

from rt3_tvm.schedules import scheduled
from rt3_tvm.schedules.cpu import CpuShape


@tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels:
    """Apply the schedules; what has no family is elementwise."""

    def __init__(self, cpu: CpuShape) -> None:
        self.cpu = cpu

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Schedule each PrimFunc of the module."""
        after = mod.clone()  # TVM hands over the caller's own module
        for var, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                after[var] = scheduled(func, self.cpu)
        return after
