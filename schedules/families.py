"""The table of kernel families: a file for each, and one row of SCHEDULES that says all that is asked of it."""

from typing import Any

from tvm import tirx

from rt3_tvm.schedules import examples, references
from rt3_tvm.schedules.attention import attention_of, schedule_attention
from rt3_tvm.schedules.attention_float16 import attention_float16_of, schedule_attention_float16
from rt3_tvm.schedules.border import (
    embedding,
    from_feature_major,
    pattern_embedding,
    schedule_gather,
    schedule_pattern_embedding,
    schedule_scatter,
    to_feature_major,
)
from rt3_tvm.schedules.convert import convert, schedule_convert
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.elementwise import schedule_elementwise
from rt3_tvm.schedules.family import KernelFamily, rows_looked_up
from rt3_tvm.schedules.few_tokens import schedule_few_tokens
from rt3_tvm.schedules.layer_norm import layer_norm, schedule_layer_norm
from rt3_tvm.schedules.layout import ELEMENT_TYPES, FEATURE_MAJOR, FLOAT16, REAL, ElementType
from rt3_tvm.schedules.linear_plan import LinearPart, LinearPlan
from rt3_tvm.schedules.matmul import matmul, schedule_matmul
from rt3_tvm.schedules.pattern_linear import schedule_linear
from rt3_tvm.schedules.quantise import quantise
from rt3_tvm.schedules.quantise_static import quantise_static
from rt3_tvm.schedules.relative_scores import relative_scores, schedule_relative_scores
from rt3_tvm.schedules.rotary import rotary, rotary_flops, schedule_rotary

KERNEL_ATTR = "rt3.kernel"
"""PrimFunc attribute that names the family."""
FLOPS_ATTR = "rt3.flops"
"""PrimFunc attribute that says how many floating-point operations a call does, where the family counts them."""

LINEAR_FAMILIES = (
    "pattern_linear",
    "dense_linear",
    "few_token_linear",
    "pattern_linear_int8",
    "quad_linear_int8",
    "dense_linear_int8",
    "few_token_linear_int8",
)
"""Families that multiply by a weight."""


def _lanes(func: tirx.PrimFunc, cpu: CpuShape) -> int:
    """Return the lanes of a kernel by what its first argument holds; of ids and flags those of the numbers between."""
    return cpu.lanes(ELEMENT_TYPES.get(str(func.params[0].ty.dtype), REAL))


def _linear_flops(plan: LinearPlan, part: LinearPart, _activation: str, _cpu: CpuShape) -> float:
    return plan.flops(part)


def _nothing(*_arguments: Any) -> float:
    return 0.0


SCHEDULES: dict[str, KernelFamily] = {
    "pattern_linear": KernelFamily(
        summary="pattern-sparse linear layer, bias and activation fused",
        algorithm=LinearPlan.kernel,
        schedule=lambda f, c: schedule_linear(f, _lanes(f, c)),
        flops=_linear_flops,
        example=examples.linear("pattern_linear"),
        reference=references.linear,
    ),
    "dense_linear": KernelFamily(
        summary="dense linear layer, bias and activation fused",
        algorithm=LinearPlan.kernel,
        schedule=lambda f, c: schedule_linear(f, _lanes(f, c)),
        flops=_linear_flops,
        example=examples.linear("dense_linear"),
        reference=references.linear,
    ),
    "few_token_linear": KernelFamily(
        summary="linear layer for a handful of tokens, vectors over rows",
        algorithm=LinearPlan.kernel,
        schedule=lambda f, _c: schedule_few_tokens(f),
        flops=_linear_flops,
        example=examples.linear("few_token_linear"),
        reference=references.linear,
    ),
    "convert": KernelFamily(
        summary="activations in the layout of another element type",
        algorithm=convert,
        schedule=lambda f, c: schedule_convert(f, c.lanes(ElementType.of(f.params[-1].ty.dtype))),
        flops=_nothing,
        example=examples.convert,
        reference=references.convert,
    ),
    "quantise": KernelFamily(
        summary="activations as int8, a scale for each token",
        algorithm=quantise,
        schedule=lambda f, _c: f,  # written in vectors
        flops=_nothing,
        example=examples.quantise,
        reference=references.quantise,
    ),
    "quantise_static": KernelFamily(
        summary="activations as int8 by calibrated factors of features",
        algorithm=quantise_static,
        schedule=lambda f, _c: f,  # written in vectors
        flops=_nothing,
        example=examples.quantise_static,
        reference=references.quantise_static,
    ),
    "pattern_linear_int8": KernelFamily(
        summary="pattern-sparse linear layer in int8, scales, bias and activation fused",
        algorithm=LinearPlan.kernel,
        schedule=lambda f, _c: f,
        flops=_linear_flops,
        example=examples.int8_linear("pattern_linear_int8"),
        reference=references.int8_linear,
    ),
    "quad_linear_int8": KernelFamily(
        summary="the same where columns are kept in quads, whose activations lie beside each other",
        algorithm=LinearPlan.kernel,
        schedule=lambda f, _c: f,
        flops=_linear_flops,
        example=examples.int8_linear("quad_linear_int8"),
        reference=references.int8_linear,
    ),
    "dense_linear_int8": KernelFamily(
        summary="dense linear layer in int8, scales, bias and activation fused",
        algorithm=LinearPlan.kernel,
        schedule=lambda f, _c: f,
        flops=_linear_flops,
        example=examples.int8_linear("dense_linear_int8"),
        reference=references.int8_linear,
    ),
    "few_token_linear_int8": KernelFamily(
        summary="linear layer in int8 for a handful of tokens, vectors over rows",
        algorithm=LinearPlan.kernel,
        schedule=lambda f, _c: f,
        flops=_linear_flops,
        example=examples.int8_linear("few_token_linear_int8"),
        reference=references.int8_linear,
    ),
    "attention": KernelFamily(
        summary="scores, softmax and context of one head and query tile",
        algorithm=attention_of,
        schedule=lambda f, c: schedule_attention(f, _lanes(f, c)),
        flops=lambda shape, _cpu: shape.flops,
        example=examples.attention,
        reference=references.attention,
    ),
    "attention_float16": KernelFamily(
        summary="the same, both products in float16",
        algorithm=attention_float16_of,
        schedule=lambda f, c: schedule_attention_float16(f, min(c.lanes(FLOAT16), FEATURE_MAJOR.token_tile)),
        flops=lambda shape, _cpu: shape.flops,
        example=examples.attention_float16,
        reference=references.attention,
        tolerance=2.0**-6,  # its values are up to 8
    ),
    "relative_scores": KernelFamily(
        summary="scores of relative positions, shifted along diagonals",
        algorithm=relative_scores,
        schedule=lambda f, c: schedule_relative_scores(f, _lanes(f, c)),
        flops=lambda shape, block: shape.flops(block),
        example=examples.relative_scores,
        reference=references.relative_scores,
        tolerance=1e-4,
    ),
    "matmul": KernelFamily(
        summary="products of run-time tensors",
        algorithm=matmul,
        schedule=lambda f, c: schedule_matmul(f, _lanes(f, c)),
        flops=lambda shape, _block: shape.flops,
        example=examples.matmul,
        reference=references.matmul,
    ),
    "rotary": KernelFamily(
        summary="rotary positions",
        algorithm=rotary,
        schedule=lambda f, c: schedule_rotary(f, _lanes(f, c)),
        flops=rotary_flops,
        example=examples.rotary,
        reference=references.rotary,
    ),
    "layer_norm": KernelFamily(
        summary="LayerNorm or RMSNorm with the residual before it",
        algorithm=layer_norm,
        schedule=lambda f, c: schedule_layer_norm(f, _lanes(f, c)),
        flops=lambda shape: shape.flops,
        example=examples.layer_norm,
        reference=references.layer_norm,
    ),
    "embedding": KernelFamily(
        summary="rows of a table into the feature-major layout",
        algorithm=embedding,
        schedule=lambda f, _c: schedule_gather(f),
        flops=_nothing,
        example=examples.embedding,
        reference=references.embedding,
        bytes=rows_looked_up,
    ),
    "pattern_embedding": KernelFamily(
        summary="rows of a pattern-sparse table into the feature-major layout",
        algorithm=pattern_embedding,
        schedule=lambda f, c: schedule_pattern_embedding(f, _lanes(f, c)),
        flops=_nothing,
        example=examples.pattern_embedding,
        reference=references.pattern_embedding,
        bytes=rows_looked_up,
    ),
    "to_feature_major": KernelFamily(
        summary="into the feature-major layout",
        algorithm=to_feature_major,
        schedule=lambda f, _c: schedule_gather(f),
        flops=_nothing,
        example=examples.to_feature_major,
        reference=references.to_feature_major,
    ),
    "from_feature_major": KernelFamily(
        summary="out of the feature-major layout",
        algorithm=from_feature_major,
        schedule=lambda f, _c: schedule_scatter(f),
        flops=_nothing,
        example=examples.from_feature_major,
        reference=references.from_feature_major,
    ),
    "elementwise": KernelFamily(
        summary="whatever has no family of its own",
        algorithm=lambda func: func,  # TVM's legalisation has made it
        schedule=lambda f, c: schedule_elementwise(f, c.lanes(REAL)),
        flops=_nothing,
        example=examples.elementwise,
        reference=references.elementwise,
    ),
}


def kernel(family: str, *arguments: Any) -> tirx.PrimFunc:
    """Return a family's kernel for some arguments, not yet scheduled: it says its family and what it computes."""
    row = SCHEDULES[family]
    marks = {KERNEL_ATTR: family, FLOPS_ATTR: round(row.flops(*arguments))}
    return row.algorithm(*arguments).with_attrs(marks)


def scheduled(func: tirx.PrimFunc, cpu: CpuShape) -> tirx.PrimFunc:
    """Return a kernel as its family's row schedules it for a core; what names no family is elementwise."""
    family = str(func.attrs.get(KERNEL_ATTR, "elementwise")) if func.attrs else "elementwise"
    return SCHEDULES[family].schedule(func, cpu).with_attrs({KERNEL_ATTR: family, "tirx.noalias": True})
