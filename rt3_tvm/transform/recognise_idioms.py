"""Phase 1: what models spell out in primitive operators becomes the operator that it is.

One row of IDIOMS each; matched by data flow and by the values of constants, never by names.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax.dpl import DFPattern, is_const, is_op, rewrite_call, wildcard

from rt3_tvm.schedules.layout import REAL
from rt3_tvm.transform.composites import static_shape
from rt3_tvm.transform.graph import real, scalar, slice_of, slices_of

Matches = dict[DFPattern, relax.Expr]
HEADS_FIRST = [0, 2, 1, 3]
"""Axes that turn (batch, length, heads, dim) into (batch, heads, length, dim) and back."""
LAST_TWO = [0, 1, 3, 2]
"""Axes that turn (batch, heads, length, dim) into (batch, heads, dim, length) and back."""


@dataclass(frozen=True, eq=False)
class Idiom:
    """A pattern, and the function that returns its replacement, or None where the details differ."""

    name: str
    pattern: DFPattern
    replace: Callable[[relax.Expr, Matches], relax.Expr | None]


def _is(expr: relax.Expr, value: float) -> bool:
    found = scalar(expr)
    return found is not None and math.isclose(found, value, rel_tol=1e-5)


def _cancelled_transposes() -> Idiom:
    source = wildcard()
    inner = is_op("relax.permute_dims")(source)
    outer = is_op("relax.permute_dims")(inner)

    def replace(_expr: relax.Expr, m: Matches) -> relax.Expr | None:
        first, second = m[inner].attrs.axes, m[outer].attrs.axes
        if first is None or second is None:
            return None
        return m[source] if all(int(first[int(axis)]) == i for i, axis in enumerate(second)) else None

    return Idiom("two transposes that undo each other", outer, replace)


def _same_shape(operator: str) -> Idiom:
    source = wildcard()
    pattern = is_op(operator)(source, wildcard())

    def replace(expr: relax.Expr, m: Matches) -> relax.Expr | None:
        return m[source] if static_shape(m[source]) == static_shape(expr) else None

    return Idiom(f"{operator} to the same shape", pattern, replace)


def _reshaped_twice() -> Idiom:
    source = wildcard()
    pattern = is_op("relax.reshape")(is_op("relax.reshape")(source, wildcard()), wildcard())
    return Idiom("a reshape of a reshape", pattern, lambda expr, m: relax.op.reshape(m[source], static_shape(expr)))


def _read_back() -> Idiom:
    """Return a slice of what was just written there, as export makes of a view that a model changes in place."""
    source, written, start, stop, step = (wildcard() for _ in range(5))
    whole = is_op("relax.slice_scatter")(source, written, start, stop, step)
    pattern = is_op("relax.strided_slice")(whole, *(wildcard() for _ in range(4)))

    def replace(_expr: relax.Expr, m: Matches) -> relax.Expr | None:
        axis, shape = int(m[whole].attrs.axis), static_shape(m[whole])
        at = [slice_of(int(m[start].value), int(m[stop].value), int(m[step].value), shape[axis])]
        return m[written] if slices_of(m[pattern]) == dict(zip([axis % len(shape)], at, strict=True)) else None

    return Idiom("a slice of what was written there", pattern, replace)


def _moved_units() -> Idiom:
    """Return a transpose of five axes and more that only moves axes of extent 1, as einsum makes them: it is a reshape."""
    source = wildcard()
    pattern = is_op("relax.permute_dims")(source)

    def replace(expr: relax.Expr, m: Matches) -> relax.Expr | None:
        order = _moved(m[pattern], static_shape(m[source]))
        return relax.op.reshape(m[source], static_shape(expr)) if order and order == sorted(order) else None

    return Idiom("a transpose of axes of extent 1", pattern, replace)


def _transposed_behind_units(operator: str) -> Idiom:
    """Return a transpose of a tensor that was given axes of extent 1: these are put in afterwards."""
    source = wildcard()
    middle = is_op(operator)(source, wildcard()) if operator == "relax.reshape" else is_op(operator)(source)
    pattern = is_op("relax.permute_dims")(middle)

    def replace(expr: relax.Expr, m: Matches) -> relax.Expr | None:
        shape, given = static_shape(m[source]), static_shape(m[middle])
        order = _moved(m[pattern], given)
        own = [i for i, n in enumerate(shape) if n != 1]
        if len(given) <= len(shape) or not order or [shape[i] for i in own] != [n for n in given if n != 1]:
            return None
        places = [i for i, n in enumerate(given) if n != 1]
        axes = [i for i in range(len(shape)) if i not in own] + [own[places.index(i)] for i in order]
        return relax.op.reshape(relax.op.permute_dims(m[source], axes), static_shape(expr))

    return Idiom(f"a transpose behind {operator}", pattern, replace)


def _moved(transpose: relax.Call, shape: tuple[int, ...]) -> list[int]:
    """Return the axes of more than one element in their new order, of a transpose of more axes than layouts have."""
    axes = transpose.attrs.axes
    if axes is None or len(shape) <= len(HEADS_FIRST):
        return []
    return [int(a) % len(shape) for a in axes if shape[int(a)] != 1]


def _gelu_tanh() -> Idiom:
    x, half, three, cubic, scale, one = wildcard(), *(is_const() for _ in range(5))
    cube = is_op("relax.power")(x, three)
    inner = is_op("relax.multiply")(is_op("relax.add")(x, is_op("relax.multiply")(cube, cubic)), scale)
    outer = is_op("relax.add")(is_op("relax.tanh")(inner), one)
    pattern = is_op("relax.multiply")(is_op("relax.multiply")(x, half), outer)
    values = {half: 0.5, three: 3.0, cubic: 0.044715, scale: math.sqrt(2 / math.pi), one: 1.0}

    def replace(_expr: relax.Expr, m: Matches) -> relax.Expr | None:
        return relax.op.nn.gelu_tanh(m[x]) if all(_is(m[p], v) for p, v in values.items()) else None

    return Idiom("GELU, tanh form", pattern, replace)


def _silu(sigmoid_first: bool) -> Idiom:
    x = wildcard()
    sigmoid = is_op("relax.sigmoid")(x)
    pattern = is_op("relax.multiply")(*((sigmoid, x) if sigmoid_first else (x, sigmoid)))
    return Idiom("SiLU", pattern, lambda _expr, m: relax.op.nn.silu(m[x]))


def _rms_norm(weight_first: bool) -> Idiom:
    x, weight, two, epsilon = wildcard(), wildcard(), is_const(), is_const()
    mean = is_op("relax.mean")(is_op("relax.power")(x, two))
    normal = is_op("relax.multiply")(x, is_op("relax.rsqrt")(is_op("relax.add")(mean, epsilon)))
    pattern = is_op("relax.multiply")(*((weight, normal) if weight_first else (normal, weight)))

    def replace(_expr: relax.Expr, m: Matches) -> relax.Expr | None:
        axes = [int(a) for a in m[mean].attrs.axis]
        small = scalar(m[epsilon])
        if small is None or not _is(m[two], 2.0) or axes not in ([-1], [len(static_shape(m[x])) - 1]):
            return None
        if static_shape(m[weight]) != static_shape(m[x])[-1:]:
            return None
        return relax.op.nn.rms_norm(m[x], m[weight], [-1], small)

    return Idiom("RMSNorm", pattern, replace)


def _attention(operator: str) -> Idiom:
    """Return attention on (batch, length, heads, dim) as what it is short for: one form for all that follows."""
    operands = [wildcard() for _ in range(4 if operator == "relax.nn.attention_bias" else 3)]

    pattern = is_op(operator)(*operands)

    def replace(_expr: relax.Expr, m: Matches) -> relax.Expr | None:
        attrs = m[pattern].attrs
        op, (query, key, value) = relax.op, operands[:3]
        (_, queries, _, dim), keys = static_shape(m[query]), static_shape(m[key])[1]
        if attrs.causal_mask not in (None, "TopLeft") or attrs.window_size is not None:
            return None
        q, k, v = (op.permute_dims(m[p], HEADS_FIRST) for p in (query, key, value))
        scale = float(attrs.scale) if attrs.scale is not None else dim**-0.5
        scores = op.multiply(op.matmul(q, op.permute_dims(k, LAST_TWO)), real(scale))
        for bias in operands[3:]:
            scores = op.add(scores, m[bias])
        if attrs.causal_mask is not None:
            triangle = np.triu(np.full((queries, keys), np.finfo(REAL.dtype).min, REAL.dtype), 1)
            scores = op.add(scores, real(triangle))
        return op.permute_dims(op.matmul(op.nn.softmax(scores, axis=-1), v), HEADS_FIRST)

    return Idiom(operator, pattern, replace)


IDIOMS = (
    _same_shape("relax.broadcast_to"),
    _moved_units(),
    _transposed_behind_units("relax.expand_dims"),
    _reshaped_twice(),
    _transposed_behind_units("relax.reshape"),
    _reshaped_twice(),
    _same_shape("relax.reshape"),
    _read_back(),
    # What was read back may have been reshaped before, and be a part of something that was written itself.
    _reshaped_twice(),
    _same_shape("relax.reshape"),
    _read_back(),
    _gelu_tanh(),
    _silu(sigmoid_first=False),
    _silu(sigmoid_first=True),
    _rms_norm(weight_first=True),
    _rms_norm(weight_first=False),
    _attention("relax.nn.attention"),
    _attention("relax.nn.attention_bias"),
    _cancelled_transposes(),
)


@tvm.transform.module_pass(opt_level=0, name="RecogniseIdioms")
class RecogniseIdioms:
    """Apply every row of IDIOMS to every Relax function, in order."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rewrite the functions."""
        after = mod.clone()  # TVM hands over the caller's own module
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                for idiom in IDIOMS:
                    func = rewrite_call(idiom.pattern, _rewriter(idiom), func)  # noqa: PLW2901
                after[var] = func
        return after


def _rewriter(idiom: Idiom) -> Callable[[relax.Expr, Any], relax.Expr]:
    def rewrite(expr: relax.Expr, matches: Any) -> relax.Expr:
        replacement = idiom.replace(expr, matches)
        return expr if replacement is None else replacement

    return rewrite
