"""LayerNorm and RMSNorm to their kernel."""

from tvm import relax

from rt3_tvm.schedules.layer_norm import NormShape
from rt3_tvm.transform.composites import Composite, find_op, result_fields
from rt3_tvm.transform.layouts import Arguments, Layouts, token_shape


def lower_norm(lowering: Layouts, var: relax.Var, row: Composite, func: relax.Function, args: Arguments) -> bool:
    """Lower a norm with the residual before it; the sum is kept where it is used again."""
    t, fields = token_shape(args["x"]), result_fields(func)
    shape = NormShape(
        t.tiles,
        t.features,
        float(find_op(func, row.operator).attrs.epsilon),
        centred="beta" in args,
        residual="residual" in args,
        keep_sum=len(fields) > 1,
    )
    x = lowering.as_feature_major(args["x"])
    other = lowering.as_feature_major(args["residual"]) if shape.residual else x
    gamma = lowering.as_plain(args["gamma"])
    operands = [x, other, gamma, lowering.as_plain(args["beta"]) if shape.centred else gamma]
    if not shape.keep_sum:
        lowering.feature_major[var] = lowering.kernel("layer_norm", (shape,), operands, t.ty())
        return True
    both = lowering.kernel("layer_norm", (shape,), operands, [t.ty(), t.ty()])
    values = relax.analysis.get_var2val(func)
    is_sum = [values.get(f, f).op.name == "relax.add" for f in fields]
    lowering.tuples[var] = [lowering.builder.emit(relax.TupleGetItem(both, int(kept))) for kept in is_sum]
    return True
