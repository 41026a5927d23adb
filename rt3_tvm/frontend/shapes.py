"""Shapes of Relax expressions; every one is static here."""

from tvm import relax


def shape_of(expr: relax.Expr) -> list[int]:
    """Return the shape of a tensor."""
    return [int(d) for d in expr.ty.shape]
