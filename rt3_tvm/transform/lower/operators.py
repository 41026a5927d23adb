"""Single operators that can stay in the feature-major layout; they make no kernel of ours."""

from tvm import relax

from rt3_tvm.transform.composites import static_shape
from rt3_tvm.transform.layouts import Layouts, Tokens, is_scalar, tokens_of
from rt3_tvm.transform.recognise_idioms import HEADS_FIRST


def lower_elementwise(lowering: Layouts, var: relax.Var, call: relax.Call) -> bool:
    """Apply an elementwise operator in the feature-major layout where one of its operands is already in it."""
    t = tokens_of(var)
    if t is None or not any(a in lowering.feature_major for a in call.args):
        return False
    operands = [_elementwise_operand(lowering, a, t) for a in call.args]
    if any(o is None for o in operands):
        return False
    lowering.feature_major[var] = lowering.builder.emit(relax.Call(call.op, operands, call.attrs, []))
    return True


def _elementwise_operand(lowering: Layouts, expr: relax.Expr, t: Tokens) -> relax.Expr | None:
    own = tokens_of(expr)
    if is_scalar(expr):
        return expr
    if own == t:
        return lowering.as_feature_major(expr)
    if own == Tokens(1, t.length, t.features):
        return lowering.builder.emit(relax.op.tile(lowering.as_feature_major(expr), (t.batch, 1, 1)))
    if static_shape(expr) == (t.features,):
        return lowering.builder.emit(relax.op.reshape(lowering.as_plain(expr), (t.features, 1)))
    return None


def lower_reshape(lowering: Layouts, var: relax.Var, call: relax.Call) -> bool:
    """Follow a reshape that keeps the tokens: heads are only a way to count features."""
    source = call.args[0]
    if source not in lowering.feature_major or tokens_of(source) != tokens_of(var):
        return False
    lowering.feature_major[var] = lowering.feature_major[source]
    return True


def lower_transpose(lowering: Layouts, var: relax.Var, call: relax.Call) -> bool:
    """Follow a transpose between (batch, length, heads, dim) and (batch, heads, length, dim)."""
    source, axes = call.args[0], call.attrs.axes
    if axes is None or [int(a) for a in axes] != HEADS_FIRST:
        return False
    if source in lowering.feature_major:
        lowering.heads_first[var] = lowering.feature_major[source]
    elif source in lowering.heads_first:
        lowering.feature_major[var] = lowering.heads_first[source]
    else:
        return False
    return True


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
