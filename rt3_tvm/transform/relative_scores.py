"""What is added to scores for relative positions, read back from how models shift it, and the function that says it.

A model multiplies queries by all positions, (batch, heads, queries, positions), and lets row q begin ``shift`` places later than
the row behind it: a reshape to (.., positions, queries), ``shift`` rows cut off, and a reshape back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax

from rt3_tvm.transform.composites import RELATIVE_SCORES, is_real, static_shape
from rt3_tvm.transform.graph import Graph, constant, real, slices_of

LAST_TWO = [0, 1, 3, 2]
HEADS_RANK = 4


@dataclass(frozen=True, eq=False)
class Relative:
    """Shifted products of q (batch, heads, queries, dim) and k (.., dim, positions), times a gate of (.., queries, keys)."""

    q: relax.Expr
    k: relax.Expr
    shift: int
    keys: int
    gate: relax.Expr | None = None


@dataclass(frozen=True, eq=False)
class Segments:
    """For each score one of two products of its query, by a flag (.., queries, keys), times a gate of the same shape.

    ``products`` has q (batch, heads, queries, dim) and k (.., dim, 2): that of a flag that is not set, and that of one that is;
    ``expr`` is the whole.
    """

    expr: relax.Expr
    products: Relative
    flags: relax.Expr
    gate: relax.Expr | None = None


def relative_of(graph: Graph, expr: relax.Expr) -> Relative | None:
    """Return what an expression is as relative scores; None where it is something else."""
    shape = static_shape(expr)
    if len(shape) != HEADS_RANK or not is_real(expr):
        return None
    inner, gate = _gated(graph, expr)
    found = _shifted(graph, inner)
    return None if found is None else Relative(found.q, found.k, found.shift, found.keys, gate)


def segments_of(graph: Graph, expr: relax.Expr) -> Segments | None:
    """Return what an expression is as one of two scores of a query; None where it is something else."""
    if len(static_shape(expr)) != HEADS_RANK or not is_real(expr):
        return None
    inner, gate = _gated(graph, expr)
    call = graph.call(inner, "where")
    if call is None:
        return None
    flags, yes, no = (_spread(graph, a) for a in call.args)
    products = _pair(graph, no, yes, static_shape(expr)[:3])
    if products is None or len(static_shape(flags)) != HEADS_RANK or static_shape(flags)[2:] != static_shape(expr)[2:]:
        return None
    return Segments(expr, products, flags, gate)


def _pair(graph: Graph, first: relax.Expr, second: relax.Expr, rows: tuple[int, ...]) -> Relative | None:
    """Return the products (batch, heads, queries, 2) of which two expressions are the parts."""
    zero, one = graph.field(first), graph.field(second)
    if zero is None or one is None or not zero[0].same_as(one[0]) or (zero[1], one[1]) != (0, 1):
        return None
    split = graph.call(zero[0], "split")
    if split is None:
        return None
    cut = static_shape(split.args[0]) == (*rows, 2) and int(split.attrs.axis) % HEADS_RANK == HEADS_RANK - 1
    return _product(graph, split.args[0]) if cut else None


def _gated(graph: Graph, expr: relax.Expr) -> tuple[relax.Expr, relax.Expr | None]:
    """Return x and g of x * g, where g has an element for each query and key, for all sequences and heads or for each."""
    call, shape = graph.call(expr, "multiply"), static_shape(expr)
    for x, gate in (call.args, call.args[::-1]) if call is not None else ():
        own = (1,) * (len(shape) - len(static_shape(gate))) + static_shape(gate)
        fits = own[2:] == shape[2:] and all(a in (1, b) for a, b in zip(own, shape, strict=True))
        if static_shape(x) == shape and fits and graph.call(x, "multiply") is None and constant(gate) is not None:
            return x, gate
    return expr, None


def same_gate(a: relax.Expr | None, b: relax.Expr | None) -> bool:
    """Return whether two gates are equal, or neither is there."""
    return (a is None) == (b is None) and (a is None or np.array_equal(constant(a), constant(b)))  # type: ignore[arg-type]


def _spread(graph: Graph, expr: relax.Expr) -> relax.Expr:
    call = graph.call(expr, "broadcast_to")
    return expr if call is None else call.args[0]


def _product(graph: Graph, expr: relax.Expr) -> Relative | None:
    call = graph.call(expr, "matmul")
    if call is None or not all(len(static_shape(a)) == HEADS_RANK and is_real(a) for a in call.args):
        return None
    q, k = call.args
    (batch, heads, _, _), (shared, own, _, positions) = static_shape(q), static_shape(k)
    if static_shape(expr)[:2] != (batch, heads) or own != heads or shared not in (1, batch):
        return None
    return Relative(q, k, 0, positions)


def _shifted(graph: Graph, expr: relax.Expr) -> Relative | None:
    """Follow keys cut off, a reshape, rows cut off and a reshape back to a product."""
    batch, heads, queries, keys = static_shape(expr)
    cut = _first_columns(graph, expr)
    back = graph.call(expr if cut is None else cut, "reshape")
    rows = graph.call(back.args[0], "strided_slice") if back is not None else None
    forth = graph.call(rows.args[0], "reshape") if rows is not None else None
    product = _product(graph, forth.args[0]) if forth is not None else None
    if back is None or rows is None or forth is None or product is None:
        return None
    positions = product.keys
    shift = positions - static_shape(back)[3]
    wanted = (
        (back, (batch, heads, queries, positions - shift)),
        (rows, (batch, heads, positions - shift, queries)),
        (forth, (batch, heads, positions, queries)),
        (forth.args[0], (batch, heads, queries, positions)),
    )
    if any(static_shape(x) != shape for x, shape in wanted) or slices_of(rows) != {2: (shift, positions, 1)}:
        return None
    if shift < 1 or shift * queries + keys > positions:  # else rows would run into each other
        return None
    return Relative(product.q, product.k, shift, keys)


def _first_columns(graph: Graph, expr: relax.Expr) -> relax.Expr | None:
    """Return what an expression is the first columns of: by a slice, or looked up at 0, 1, 2, ..; None where it is not."""
    call = graph.call(expr, "strided_slice", "take")
    if call is None:
        return None
    keys, axis = static_shape(expr)[-1], len(static_shape(expr)) - 1
    if call.op.name == "relax.strided_slice":
        return call.args[0] if slices_of(call) == {axis: (0, keys, 1)} else None
    index = constant(call.args[1])
    counts = index is not None and np.array_equal(index, np.arange(keys))
    return call.args[0] if counts and int(call.attrs.axis) % (axis + 1) == axis else None


def relative_function(arguments: dict[str, relax.Expr], shift: int, keys: int, factor: float) -> relax.Function:
    """Return the function of relative scores; its body spells out what it means.

    Arguments by role: q, r (batch or 1, heads, positions, dim); where there are any, flags and segments (batch, heads, queries,
    2), gate, bias.
    """
    params = {role: relax.Var(role, expr.ty) for role, expr in arguments.items()}
    builder = relax.BlockBuilder()
    with builder.function("relative_scores", list(params.values())):
        with builder.dataflow():
            out = builder.emit_output(_spelt(builder.emit, params, shift, keys, factor))
        builder.emit_func_output(out)
    attrs = {"Composite": RELATIVE_SCORES, "rt3.shift": shift, "rt3.keys": keys, "rt3.factor": factor}
    return builder.get()["relative_scores"].without_attr("global_symbol").with_attrs(attrs)


def _spelt(
    emit: Callable[[relax.Expr], relax.Var], params: dict[str, relax.Var], shift: int, keys: int, factor: float
) -> relax.Expr:
    op = relax.op
    batch, heads, queries, _ = static_shape(params["q"])
    positions = static_shape(params["r"])[2]
    scores = emit(op.matmul(params["q"], emit(op.permute_dims(params["r"], LAST_TWO))))
    if shift:
        scores = emit(op.reshape(scores, (batch, heads, positions, queries)))
        scores = emit(op.strided_slice(scores, [2], [shift], [positions]))
        scores = emit(op.reshape(scores, (batch, heads, queries, positions - shift)))
    scores = emit(op.strided_slice(scores, [3], [0], [keys]))
    if "flags" in params:
        no, yes = (emit(op.strided_slice(params["segments"], [3], [i], [i + 1])) for i in range(2))
        flag = emit(op.greater(params["flags"], real(0.5)))
        scores = emit(op.add(scores, emit(op.where(flag, yes, no))))
    if "gate" in params:
        scores = emit(op.multiply(scores, params["gate"]))
    scores = emit(op.multiply(scores, real(factor)))
    return op.add(scores, params["bias"]) if "bias" in params else scores
