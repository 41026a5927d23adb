"""Scores of relative positions to their kernel, straight into the layout in which attention adds them."""

from tvm import relax

from rt3_tvm.schedules.layout import REAL
from rt3_tvm.schedules.relative_scores import RelativeShape, position_block
from rt3_tvm.transform.composites import Composite, static_shape
from rt3_tvm.transform.graph import real
from rt3_tvm.transform.layouts import Arguments, Layouts, tensor


def lower_relative_scores(
    lowering: Layouts, var: relax.Var, _row: Composite, func: relax.Function, args: Arguments
) -> bool:
    """Lower relative scores by what phase 2 has said of them."""
    (batch, heads, queries, dim), (own, _, positions, _) = (static_shape(args[role]) for role in "qr")
    numbers = int(func.attrs["rt3.keys"]), int(func.attrs["rt3.shift"]), float(func.attrs["rt3.factor"])
    segments, gate, bias = (_spread(args, role) for role in ("flags", "gate", "bias"))
    shape = RelativeShape(batch, queries, heads, dim, positions, *numbers, own == 1, segments, gate, bias)
    none = real([[[0.0]]])
    operands = [lowering.as_heads_first(args[role]) for role in "qr"] + [
        lowering.as_score_tiles(args[role]) if role in args else none for role in ("flags", "segments", "gate", "bias")
    ]
    ty = tensor((batch * heads * shape.tiles, shape.keys, shape.layout.token_tile), REAL.dtype)
    arguments = (shape, position_block(shape, lowering.context.cpu))
    lowering.score_tiles[var] = lowering.kernel("relative_scores", arguments, operands, ty)
    return True


def _spread(args: Arguments, role: str) -> tuple[int, int] | None:
    """Return for how many sequences and heads an operand has scores."""
    return (static_shape(args[role])[0], static_shape(args[role])[1]) if role in args else None
