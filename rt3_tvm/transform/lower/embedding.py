"""Rows of a table, dense or pattern-sparse, straight into the feature-major layout."""

from tvm import relax

from rt3_tvm.schedules.packing import column_dtype
from rt3_tvm.transform.composites import Composite, find_op, static_shape
from rt3_tvm.transform.context import WeightRef
from rt3_tvm.transform.layouts import Arguments, Layouts, Tokens, tensor, tokens_of


def lower_embedding(lowering: Layouts, var: relax.Var, _row: Composite, func: relax.Function, args: Arguments) -> bool:
    """Lower a look-up of rows: of the packed table where this level prunes it."""
    t = tokens_of(func.body if not isinstance(func.body, relax.SeqExpr) else func.body.body)
    table, ids = args["table"], args["ids"]
    if int(find_op(func, "relax.take").attrs.axis) != 0 or t is None or t.batch * t.length != static_shape(ids)[0]:
        return False
    name = lowering.context.parameters.get(table.name, "")
    if name in lowering.context.matrices:
        lowering.feature_major[var] = _pattern_embedding(lowering, name, t, ids)
        return True
    arguments = (t.layout, t.batch, t.length, *static_shape(table), str(ids.ty.dtype))
    operands = [lowering.as_plain(table), lowering.as_plain(ids)]
    lowering.feature_major[var] = lowering.kernel("embedding", arguments, operands, t.ty())
    return True


def _pattern_embedding(lowering: Layouts, name: str, t: Tokens, ids: relax.Expr) -> relax.Expr:
    matrix, level = lowering.context.matrices[name], lowering.context.level
    rows, features = matrix.backbone.shape
    kept, group = matrix.group_columns()[0].shape[1], matrix.patterns.shape.group
    dtypes = column_dtype(features), str(ids.ty.dtype)
    arguments = (t.layout, t.batch, t.length, rows, features, kept, group, dtypes)
    tables = [
        lowering.parameter(WeightRef("values", name, level=level), tensor((rows, kept))),
        lowering.parameter(WeightRef("offsets", name, level=level), tensor((rows // group, kept), dtypes[0])),
    ]
    return lowering.kernel("pattern_embedding", arguments, [*tables, lowering.as_plain(ids)], t.ty())
