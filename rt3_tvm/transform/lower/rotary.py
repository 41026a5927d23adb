"""Rotary positions to their kernel."""

from tvm import relax

from rt3_tvm.schedules.layout import FEATURE_MAJOR
from rt3_tvm.transform.composites import Composite, static_shape
from rt3_tvm.transform.graph import constant, real
from rt3_tvm.transform.layouts import Arguments, Layouts, Tokens


def lower_rotary(lowering: Layouts, var: relax.Var, _row: Composite, _func: relax.Function, args: Arguments) -> bool:
    """Lower rotary positions whose angles are known at compile time."""
    batch, heads, length, dim = static_shape(args["x"])
    tables = [t for t in (constant(args[r]) for r in ("cos", "sin")) if t is not None]
    if len(tables) < 2:
        return False
    angles = [lowering.as_feature_major(real(table.reshape(1, length, dim))) for table in tables]
    out = Tokens(batch, length, heads * dim).ty()
    arguments = (FEATURE_MAJOR, batch, length, heads, dim)
    operands = [lowering.as_heads_first(args["x"]), *angles]
    lowering.heads_first[var] = lowering.kernel("rotary", arguments, operands, out)
    return True
