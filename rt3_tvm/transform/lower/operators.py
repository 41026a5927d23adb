"""Single operators that can stay in the feature-major layout; they make no kernel of ours."""

import math

from tvm import relax

from rt3_tvm.transform.composites import static_shape
from rt3_tvm.transform.layouts import Layouts, Tokens, is_scalar, tokens_of
from rt3_tvm.transform.recognise_idioms import HEADS_FIRST


def lower_elementwise(lowering: Layouts, var: relax.Var, call: relax.Call) -> bool:
    """Apply an elementwise operator in the feature-major layout where one of its operands is already in it."""
    t = tokens_of(var)
    if t is None or not any(a in lowering.feature_major for a in call.args):
        return False
    operands = [_elementwise_operand(lowering, a, static_shape(var), t) for a in call.args]
    if any(o is None for o in operands):
        return False
    lowering.feature_major[var] = lowering.builder.emit(relax.Call(call.op, operands, call.attrs, []))
    return True


def _elementwise_operand(lowering: Layouts, expr: relax.Expr, shape: tuple[int, ...], t: Tokens) -> relax.Expr | None:
    """Return an operand of a result of ``shape`` as its layout has it; None where it is broadcast in another way."""
    if is_scalar(expr):
        return expr
    own = (1,) * (len(shape) - len(static_shape(expr))) + static_shape(expr)
    if own == shape and tokens_of(expr) == t:
        return lowering.as_feature_major(expr)
    features = shape[2:] if len(shape) > 2 else shape[1:]
    if own[len(shape) - len(features) :] == features and math.prod(own) == t.features:
        return lowering.builder.emit(relax.op.reshape(lowering.as_plain(expr), (t.features, 1)))
    if own == (1, *shape[1:]) and tokens_of(expr) == Tokens(1, t.length, t.features):
        return lowering.builder.emit(relax.op.tile(lowering.as_feature_major(expr), (t.batch, 1, 1)))
    return None


def lower_reshape(lowering: Layouts, var: relax.Var, call: relax.Call) -> bool:
    """Follow a reshape that keeps the tokens: heads are only a way to count features."""
    source = call.args[0]
    if source not in lowering.feature_major or tokens_of(source) != tokens_of(var):
        return False
    lowering.feature_major[var] = lowering.feature_major[source]
    return True


def lower_transpose(lowering: Layouts, var: relax.Var, call: relax.Call) -> bool:
    """Follow a transpose between (batch, length, heads, dim) and (batch, heads, length, dim), wherever axes of 1 stand.

    One that moves nothing but axes of 1 is a reshape.
    """
    source, shape = call.args[0], static_shape(call.args[0])
    axes = [int(a) for a in call.attrs.axes] if call.attrs.axes is not None else list(range(len(shape)))[::-1]

    def in_order(places: list[int]) -> bool:
        own = [a for a in places if shape[a] != 1]
        return own == sorted(own)

    if source in lowering.feature_major:
        if len(shape) == len(HEADS_FIRST) and in_order([axes[i] for i in HEADS_FIRST]):
            batch, heads, length, dim = static_shape(var)
            if tokens_of(source) == Tokens(batch, length, heads * dim):
                lowering.heads_first[var] = lowering.feature_major[source]
                return True
        return in_order(axes) and lower_reshape(lowering, var, call)
    if source in lowering.heads_first:
        batch, heads, length, dim = shape
        moved = [a for a in axes if shape[a] != 1] == [a for a in HEADS_FIRST if shape[a] != 1]
        if moved and tokens_of(var) == Tokens(batch, length, heads * dim):
            lowering.feature_major[var] = lowering.heads_first[source]
            return True
    return False


def lower_split(lowering: Layouts, var: relax.Var, call: relax.Call) -> bool:
    """Cut features into parts, as fused projections of queries, keys and values need."""
    source = call.args[0]
    shape = static_shape(source)
    if source not in lowering.feature_major or int(call.attrs.axis) not in (-1, len(shape) - 1) or len(shape) == 4:
        return False
    sizes = [int(field.shape[-1]) for field in var.ty.fields]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    lowering.tuples[var] = [
        lowering.builder.emit(relax.op.strided_slice(lowering.feature_major[source], [1], [start], [start + size]))
        for start, size in zip(starts, sizes, strict=True)
    ]
    return True
