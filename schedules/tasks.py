"""Marks on a kernel: which loop threads can share, and which buffers are read by vector and by pointer."""

from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FeatureMajor

TASKS_ATTR = "rt3.tasks"
"""Annotation of the one loop of a kernel whose iterations are independent: the runtime gives each thread a range of it."""


BY_LANE_ATTR = "rt3.by_lane"
"""PrimFunc attribute: which buffers are read by vector and by pointer, for codegen/by_lane.py."""


def of_tasks(name: str) -> str:
    """Return the name of the buffer that holds one for each task, where that is too large for a stack."""
    return f"{name}_of_tasks"


def by_lane(cpu: CpuShape, layout: FeatureMajor, weights: list[str], pointers: list[str]) -> dict[str, Any]:
    """Return the attribute of a kernel for a core: buffers of weights, those that a loop reads by pointer, a line of X.

    No lanes where a core multiplies by none: then only pointers are made.
    """
    lanes = cpu.lanes(layout.element) if cpu.by_lane else 0
    return {"weights": weights, "pointers": pointers, "lanes": lanes, "line": layout.token_tile}


def share_loop(sch: Schedule, loop: LoopRV) -> None:
    """Mark a loop as the tasks of its kernel.

    Do it last: in TVM 0.27 an annotation that is the first step of a schedule also changes the function it was made from,
    and ours are cached.
    """
    sch.annotate(loop, TASKS_ATTR, 1)
