"""What is added to the scores of attention, taken apart: a constant, what depends on keys alone, and the rest.

Sums, scales, masks of logical connectives and the minimum of masks are looked into, so that a triangle that a model combines
with the mask of its tokens at run time is known at compile time all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from rt3_tvm.schedules.attention_mask import HIDDEN
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.transform.attention_scores import Scores
from rt3_tvm.transform.composites import is_real, static_shape
from rt3_tvm.transform.graph import Graph, constant, real
from rt3_tvm.transform.relative_scores import Relative, Segments, relative_of, segments_of

MASK_VALUE = float(np.finfo(REAL.dtype).min)
"""What hides a key: finite, so that the softmax of a row that is hidden whole is too."""

# Of booleans the two families of operators mean the same.
_NOT, _AND, _OR = (tuple(f"{kind}_{name}" for kind in ("logical", "bitwise")) for name in ("not", "and", "or"))
Shape4 = tuple[int, int, int, int]


@dataclass
class BiasParts:
    """Collects what is added to scores of ``shape``, (batch, heads, queries, keys).

    ``constant`` broadcasts to the shape; ``keys`` are (batch or 1, heads or 1, 1, keys) and ``scores`` the same with queries.
    ``relative`` and ``segments`` are those of relative positions, each with its factor.
    """

    graph: Graph
    emit: Callable[[relax.Expr], relax.Var]
    shape: Shape4
    constant: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 1, 1), REAL.dtype))
    keys: list[relax.Expr] = field(default_factory=list)
    scores: list[relax.Expr] = field(default_factory=list)
    relative: list[tuple[Relative, float]] = field(default_factory=list)
    segments: list[tuple[Segments, float]] = field(default_factory=list)

    def collect(self, scores: Scores) -> None:
        """Take apart all biases and conditions of scores."""
        for bias in scores.biases:
            self.add(bias.expr, bias.factor, bias.rank)
        for condition in scores.conditions:
            self.hide(condition.expr, condition.shown, condition.rank)

    def add(self, expr: relax.Expr, factor: float, rank: int) -> None:
        """Take apart ``factor`` times an expression that broadcasts to scores of ``rank`` axes."""
        value, call = constant(expr), self.graph.call(expr)
        if value is not None:
            self.add_constant((value * factor).astype(REAL.dtype), rank)
            return
        step = _STEPS.get(call.op.name) if call is not None else None
        if self._add_relative(expr, factor):
            return
        if step is None or not step(self, call, factor, rank):
            self.add_at_run_time(expr, factor, rank)

    def _add_relative(self, expr: relax.Expr, factor: float) -> bool:
        """Take scores of relative positions, once for each query and key; return whether these are some."""
        if static_shape(expr) != self.shape:
            return False
        relative = relative_of(self.graph, expr)
        if relative is not None:
            self.relative.append((relative, factor))
        segments = segments_of(self.graph, expr) if relative is None else None
        if segments is not None:
            self.segments.append((segments, factor))
        return relative is not None or segments is not None

    def add_constant(self, value: np.ndarray, rank: int) -> None:
        """Add an array; what is hidden twice stays finite."""
        with np.errstate(over="ignore"):
            total = self.constant + value.astype(REAL.dtype).reshape(self._aligned(value.shape, rank))
        self.constant = np.maximum(total, total.dtype.type(MASK_VALUE))

    def hide(self, condition: relax.Expr, shown: bool, rank: int) -> None:
        """Hide the scores where a condition is not ``shown``."""
        value = constant(condition)
        if value is not None:
            self.add_constant(np.where(value == shown, 0.0, MASK_VALUE), rank)
            return
        call = self.graph.call(condition, *_NOT, *(_AND if shown else _OR), "broadcast_to")
        if call is None:
            values = (0.0, MASK_VALUE) if shown else (MASK_VALUE, 0.0)
            yes, no = map(real, values)
            self.add_at_run_time(self.emit(relax.op.where(condition, yes, no)), 1.0, rank)
        elif call.op.name.removeprefix("relax.") in _NOT:
            self.hide(call.args[0], not shown, rank)
        elif call.op.name == "relax.broadcast_to":
            self.hide(call.args[0], shown, rank)
        else:
            for part in call.args:
                self.hide(part, shown, rank)

    def add_at_run_time(self, expr: relax.Expr, factor: float, rank: int) -> None:
        """Add what is known of a constant factor and otherwise computed when the model runs."""
        shape = self._aligned(static_shape(expr), rank)
        if not is_real(expr):
            expr = self.emit(relax.op.astype(expr, REAL.dtype))
        if factor != 1.0:
            expr = self.emit(relax.op.multiply(expr, real(factor)))
        if static_shape(expr) != shape:
            expr = self.emit(relax.op.reshape(expr, shape))
        wanted = (*shape[:3], self.shape[3])
        if shape != wanted:
            expr = self.emit(relax.op.broadcast_to(expr, wanted))
        (self.keys if shape[2] == 1 else self.scores).append(expr)

    def _aligned(self, shape: tuple[int, ...], rank: int) -> Shape4:
        """Return the four axes of what broadcasts to scores of ``rank`` axes; of three, the first is batch and heads."""
        padded = (1,) * (rank - len(shape)) + tuple(shape)
        if rank == 3:
            padded = (*(self.shape[:2] if padded[0] > 1 else (1, 1)), *padded[1:])
        return padded[0], padded[1], padded[2], padded[3]


def _sum(parts: BiasParts, call: relax.Call, factor: float, rank: int) -> bool:
    for operand in call.args:
        parts.add(operand, factor, rank)
    return True


def _scaled(parts: BiasParts, call: relax.Call, factor: float, rank: int) -> bool:
    found = parts.graph.scaled(call)
    if found is None:
        return False
    parts.add(found[0], factor * found[1], rank)
    return True


def _broadcast(parts: BiasParts, call: relax.Call, factor: float, rank: int) -> bool:
    parts.add(call.args[0], factor, rank)
    return True


def _hides(value: np.ndarray | None) -> bool:
    return value is not None and bool((value < HIDDEN).all())


def _shows(value: np.ndarray | None) -> bool:
    return value is not None and not value.any()


def _chosen(parts: BiasParts, call: relax.Call, factor: float, rank: int) -> bool:
    """Zero where a condition holds and what hides elsewhere, or the other way around."""
    condition, yes, no = call.args[0], constant(call.args[1]), constant(call.args[2])
    for shown, zero, hidden in ((True, yes, no), (False, no, yes)):
        if factor > 0 and _shows(zero) and _hides(hidden):
            parts.hide(condition, shown, rank)
            return True
    return False


def _minimum(parts: BiasParts, call: relax.Call, factor: float, rank: int) -> bool:
    """The minimum of a mask and a constant that shows or hides, as their sum: what is added must not be positive then."""
    for mask, other in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        value = constant(other)
        if factor <= 0 or value is None or not ((value == 0) | (value < HIDDEN)).all():
            continue
        parts.add_constant(value, rank)
        if not _never_positive(parts.graph, mask):
            mask = parts.emit(relax.op.minimum(mask, real(0.0)))  # noqa: PLW2901
        parts.add(mask, factor, rank)
        return True
    return False


def _never_positive(graph: Graph, expr: relax.Expr) -> bool:
    """Return whether a mask is made of constants that are not positive."""
    value, call = constant(expr), graph.call(expr, "where", "minimum")
    if call is None:
        return value is not None and bool((value <= 0).all())
    if call.op.name == "relax.minimum":
        return any(_never_positive(graph, a) for a in call.args)
    return all(_never_positive(graph, a) for a in call.args[1:])


_STEPS: dict[str, Callable[[BiasParts, relax.Call, float, int], bool]] = {
    "relax.add": _sum,
    "relax.multiply": _scaled,
    "relax.divide": _scaled,
    "relax.broadcast_to": _broadcast,
    "relax.where": _chosen,
    "relax.minimum": _minimum,
}
