"""Kernel families: the algorithm first, its schedule below, one row of SCHEDULES each that says all that is asked of it.

A family cannot exist untested or unmeasured: tests/kernels/test_families.py and `benchmarks/run.py families` go by the rows.
"""

from rt3_tvm.schedules.families import FLOPS_ATTR, KERNEL_ATTR, LINEAR_FAMILIES, SCHEDULES, kernel, scheduled
from rt3_tvm.schedules.family import KernelFamily
from rt3_tvm.schedules.linear_plan import ACTIVATION_ATTR, NAME_ATTR, SOURCE_ATTR
from rt3_tvm.schedules.pattern_linear import DECISIONS_ATTR
from rt3_tvm.schedules.tasks import BY_LANE_ATTR, TASKS_ATTR

__all__ = [
    "ACTIVATION_ATTR",
    "BY_LANE_ATTR",
    "DECISIONS_ATTR",
    "FLOPS_ATTR",
    "KERNEL_ATTR",
    "LINEAR_FAMILIES",
    "NAME_ATTR",
    "SCHEDULES",
    "SOURCE_ATTR",
    "TASKS_ATTR",
    "KernelFamily",
    "kernel",
    "scheduled",
]
