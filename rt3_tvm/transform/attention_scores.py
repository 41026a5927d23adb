"""The scores of attention, read back from what a model computes before its softmax, by data flow.

    scores = soft_cap * tanh(scale / soft_cap * q.k) + biases, hidden where a condition says so

Scales, caps, biases and conditions come in any number and order that has this meaning; everything else is none of ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import relax

from rt3_tvm.schedules.attention_mask import HIDDEN
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.transform.composites import is_real, static_shape
from rt3_tvm.transform.graph import Graph, constant

SCORE_RANKS = (3, 4)
"""Scores are (batch, heads, queries, keys) or (batch * heads, queries, keys)."""


@dataclass(frozen=True, eq=False)
class Bias:
    """What is added to scores of ``rank`` axes: ``factor`` times an expression that broadcasts to them."""

    expr: relax.Expr
    factor: float
    rank: int


@dataclass(frozen=True, eq=False)
class Condition:
    """A boolean that broadcasts to scores of ``rank`` axes: those where it is not ``shown`` are hidden."""

    expr: relax.Expr
    shown: bool
    rank: int


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of attention; ``q`` is (.., queries, dim), ``k`` its other operand, (.., dim, keys).

    ``heads``: (batch, heads) where a form with four axes was seen.
    """

    q: relax.Expr
    k: relax.Expr
    scale: float
    heads: tuple[int, int] | None
    soft_cap: float = 0.0
    biases: tuple[Bias, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def times(self, factor: float) -> "Scores | None":
        """Return the scores times a constant; what is hidden stays so only under a positive one."""
        if factor <= 0 and self.conditions:
            return None
        biases = tuple(replace(b, factor=b.factor * factor) for b in self.biases)
        return replace(self, scale=self.scale * factor, soft_cap=self.soft_cap * factor, biases=biases)


def scores_of(graph: Graph, expr: relax.Expr) -> Scores | None:
    """Return what an expression is as scores of attention; None where it is something else."""
    call = graph.call(expr)
    step = _STEPS.get(call.op.name) if call is not None else None
    if step is None or not is_real(expr) or len(static_shape(expr)) not in SCORE_RANKS:
        return None
    return step(graph, call, static_shape(expr))


def _inner(graph: Graph, expr: relax.Expr, shape: tuple[int, ...]) -> Scores | None:
    """Return the scores that an operand is, if it is not broadcast."""
    return scores_of(graph, expr) if static_shape(expr) == shape else None


def _product(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    """q.k, each times a constant or not."""
    q, k = call.args
    if not len(static_shape(q)) == len(static_shape(k)) == len(shape) or not is_real(k):
        return None
    scale = 1.0
    while found := graph.scaled(q):
        q, scale = found[0], scale * found[1]
    while found := graph.scaled(k):
        k, scale = found[0], scale * found[1]
    return Scores(q, k, scale, (shape[0], shape[1]) if len(shape) == 4 else None)


def _sum(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    """A bias added on either side, or subtracted."""
    sign = -1.0 if call.op.name == "relax.subtract" else 1.0
    a, b = call.args
    for scores, bias in ((a, b), (b, a)) if sign > 0 else ((a, b),):
        if found := _inner(graph, scores, shape):
            return replace(found, biases=(*found.biases, Bias(bias, sign, len(shape))))
    return None


def _scaled(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    found = graph.scaled(call)
    inner = _inner(graph, found[0], shape) if found else None
    return inner.times(found[1]) if found and inner else None


def _squashed(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    """Tanh of scores to which nothing was added yet: what scales its result becomes the cap."""
    inner = _inner(graph, call.args[0], shape)
    if inner is None or inner.soft_cap or inner.biases or inner.conditions:
        return None
    return replace(inner, soft_cap=1.0)


def _is_hidden(expr: relax.Expr) -> bool:
    value = constant(expr)
    return value is not None and value.dtype == REAL.dtype and bool((value < HIDDEN).all())


def _chosen(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    """Scores where a condition holds, or where it does not, and a value that hides elsewhere."""
    condition, yes, no = call.args
    for scores, other, shown in ((yes, no, True), (no, yes, False)):
        if _is_hidden(other) and (found := _inner(graph, scores, shape)):
            return replace(found, conditions=(*found.conditions, Condition(condition, shown, len(shape))))
    return None


def _clamped(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    """A lower bound that only makes what is hidden finite."""
    for scores, bound in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        if _is_hidden(bound) and (found := _inner(graph, scores, shape)):
            return found
    return None


def _cast(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    return _inner(graph, call.args[0], shape)  # between numbers: scores are of one type


def _reshaped(graph: Graph, call: relax.Call, shape: tuple[int, ...]) -> Scores | None:
    """Heads put beside the batch, or split from it."""
    source = static_shape(call.args[0])
    if {len(source), len(shape)} != set(SCORE_RANKS) or source[-2:] != shape[-2:]:
        return None
    found = scores_of(graph, call.args[0])
    split = source if len(source) == 4 else shape
    if found is None or found.heads not in (None, split[:2]):
        return None
    return replace(found, heads=(split[0], split[1]))


_STEPS: dict[str, Callable[[Graph, relax.Call, tuple[int, ...]], Scores | None]] = {
    "relax.matmul": _product,
    "relax.add": _sum,
    "relax.subtract": _sum,
    "relax.multiply": _scaled,
    "relax.divide": _scaled,
    "relax.tanh": _squashed,
    "relax.where": _chosen,
    "relax.maximum": _clamped,
    "relax.astype": _cast,
    "relax.reshape": _reshaped,
}
