"""Linear layers to the kernels of their plans."""

import math
from typing import Any

from tvm import relax

from rt3_tvm.transform.composites import Composite, static_shape
from rt3_tvm.transform.context import QUADS, WeightRef
from rt3_tvm.transform.layouts import Arguments, Layouts, Tokens, tensor, token_shape
from rt3_tvm.transform.linear_annotation import LinearAnnotation


def lower_linear(lowering: Layouts, var: relax.Var, row: Composite, func: relax.Function, args: Arguments) -> bool:
    """Lower a linear layer of the model: one kernel for each part of its plan, the second fills in the first one's result."""
    annotation = LinearAnnotation.of(func.attrs)
    if annotation is None:
        return False
    plan, t = annotation.plan, token_shape(args["x"])
    if plan.quantised:
        table = lowering.context.table_of(annotation.matrix) if plan.matrix.quads else ""
        read = lowering.as_int8(args["x"], plan.quantised, annotation.matrix, table)
        x, beside, smoothed = read.steps, [read.scales], read.smoothed
    else:
        x, beside, smoothed = lowering.as_layout(args["x"], plan.layout), [], ""
    flat = relax.op.reshape(x, (math.prod(static_shape(x)),))
    operands = [lowering.builder.emit(flat), *beside, *_weights(lowering, annotation, row, args, smoothed)]
    out = Tokens(t.batch, t.length, plan.matrix.rows).ty()
    result: list[relax.Expr] = []
    for part in plan.parts:
        arguments = (plan, part, row.activation, lowering.context.cpu)
        result = [lowering.kernel(plan.family, arguments, [*operands, *result], out, bool(result))]
    lowering.feature_major[var] = result[0]
    return True


def _weights(
    lowering: Layouts, annotation: LinearAnnotation, row: Composite, args: Arguments, smoothed: str
) -> list[relax.Expr]:
    """Return what is packed of a weight, as the plan says: values, offsets and bias, and what values of int8 have besides."""
    plan = annotation.plan
    dot = plan.quantised.dot if plan.quantised else ""
    form = QUADS if plan.matrix.quads else ""
    bias = lowering.context.parameters[args["bias"].name] if "bias" in args else ""

    def weight(kind: Any, shape: tuple[int, ...], dtype: str) -> relax.Var:
        dense, element = plan.matrix.dense, plan.element.dtype
        facts = annotation.level, plan.packing, dense, row.transposed, element, dot, smoothed, form
        ref = WeightRef(kind, annotation.matrix, bias, *facts)
        return lowering.parameter(ref, tensor(shape, dtype))

    return [weight(kind, *type_of) for kind, type_of in plan.weights.items()]
