"""Kernel families: the algorithm first, its schedule below, one row of SCHEDULES each.

A family cannot exist untested: tests/kernels/test_families.py has an example of every row.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from rt3_tvm.schedules.attention import schedule_attention
from rt3_tvm.schedules.border import schedule_gather, schedule_pattern_embedding, schedule_scatter
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.elementwise import schedule_elementwise
from rt3_tvm.schedules.few_tokens import schedule_few_tokens
from rt3_tvm.schedules.layer_norm import schedule_layer_norm
from rt3_tvm.schedules.layout import ELEMENT_TYPES, REAL, ElementType
from rt3_tvm.schedules.linear_decisions import LinearDecisions
from rt3_tvm.schedules.linear_plan import DECISIONS_ATTR, NAME_ATTR
from rt3_tvm.schedules.matmul import schedule_matmul
from rt3_tvm.schedules.pattern_linear import schedule_linear
from rt3_tvm.schedules.rotary import schedule_rotary
from rt3_tvm.schedules.tasks import TASKS_ATTR

KERNEL_ATTR = "rt3.kernel"
"""PrimFunc attribute that names the family."""
FLOPS_ATTR = "rt3.flops"
"""PrimFunc attribute that says how many floating-point operations a call does, where the family counts them."""

LINEAR_FAMILIES = ("pattern_linear", "dense_linear", "few_token_linear")
"""Families that multiply by a weight."""

__all__ = [
    "DECISIONS_ATTR",
    "FLOPS_ATTR",
    "KERNEL_ATTR",
    "LINEAR_FAMILIES",
    "NAME_ATTR",
    "SCHEDULES",
    "TASKS_ATTR",
    "KernelFamily",
]


@dataclass(frozen=True)
class KernelFamily:
    """One row: what the kernel does, and the function that schedules it for a CPU."""

    summary: str
    schedule: Callable[[tirx.PrimFunc, CpuShape], tirx.PrimFunc]


def _element(func: tirx.PrimFunc) -> ElementType:
    """Return the element type of a kernel: that of its first argument; what works on no such numbers takes REAL's vectors."""
    return ELEMENT_TYPES.get(str(func.params[0].ty.dtype), REAL)


def _linear(func: tirx.PrimFunc, cpu: CpuShape) -> tirx.PrimFunc:
    decisions = LinearDecisions(**{str(k): int(v) for k, v in func.attrs[DECISIONS_ATTR].items()})
    return schedule_linear(func, decisions, cpu.lanes(_element(func)))


SCHEDULES: dict[str, KernelFamily] = {
    "pattern_linear": KernelFamily("pattern-sparse linear layer, bias and activation fused", _linear),
    "dense_linear": KernelFamily("dense linear layer, bias and activation fused", _linear),
    "few_token_linear": KernelFamily(
        "linear layer for a handful of tokens, vectors over rows", lambda f, _c: schedule_few_tokens(f)
    ),
    "attention": KernelFamily(
        "scores, softmax and context of one head and query tile",
        lambda f, c: schedule_attention(f, c.lanes(_element(f))),
    ),
    "matmul": KernelFamily("products of run-time tensors", lambda f, c: schedule_matmul(f, c.lanes(_element(f)))),
    "rotary": KernelFamily("rotary positions", lambda f, c: schedule_rotary(f, c.lanes(_element(f)))),
    "layer_norm": KernelFamily(
        "LayerNorm or RMSNorm with the residual before it", lambda f, c: schedule_layer_norm(f, c.lanes(_element(f)))
    ),
    "embedding": KernelFamily(
        "rows of a table into the feature-major layout", lambda f, c: schedule_gather(f, c.lanes(_element(f)))
    ),
    "pattern_embedding": KernelFamily(
        "rows of a pattern-sparse table into the feature-major layout",
        lambda f, c: schedule_pattern_embedding(f, c.lanes(_element(f))),
    ),
    "to_feature_major": KernelFamily(
        "into the feature-major layout", lambda f, c: schedule_gather(f, c.lanes(_element(f)))
    ),
    "from_feature_major": KernelFamily(
        "out of the feature-major layout", lambda f, c: schedule_scatter(f, c.lanes(_element(f)))
    ),
    "elementwise": KernelFamily(
        "whatever has no family of its own", lambda f, c: schedule_elementwise(f, c.lanes(_element(f)))
    ),
}
