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
from tvm.ir.expr import GenericConst
from tvm.relax.dpl import DFPattern, is_const, is_op, rewrite_call, wildcard

from rt3_tvm.transform.composites import static_shape

Matches = dict[DFPattern, relax.Expr]
HEADS_FIRST = [0, 2, 1, 3]
"""Axes that turn (batch, length, heads, dim) into (batch, heads, length, dim) and back."""
HIDDEN = -1e30
"""What is added to a score below this hides a key."""


@dataclass(frozen=True, eq=False)
class Idiom:
    """A pattern, and the function that returns its replacement, or None where the details differ."""

    name: str
    pattern: DFPattern
    replace: Callable[[relax.Expr, Matches], relax.Expr | None]


def constant(expr: relax.Expr) -> np.ndarray | None:
    """Return the value of a constant."""
    return np.asarray(expr.value.numpy()) if isinstance(expr, GenericConst) else None


def scalar(expr: relax.Expr) -> float | None:
    """Return the value of a constant of one element."""
    array = constant(expr)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


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


def _joined_with_nothing() -> Idiom:
    pattern = is_op("relax.concat")(wildcard())

    def replace(expr: relax.Expr, _m: Matches) -> relax.Expr | None:
        fields = expr.args[0].fields if isinstance(expr.args[0], relax.Tuple) else []
        kept = [f for f in fields if 0 not in static_shape(f)]
        if not kept or len(kept) == len(fields):
            return None
        return kept[0] if len(kept) == 1 else relax.op.concat(kept, expr.attrs.axis)

    return Idiom("concat with tensors of width 0", pattern, replace)


def _reshaped_twice() -> Idiom:
    source = wildcard()
    pattern = is_op("relax.reshape")(is_op("relax.reshape")(source, wildcard()), wildcard())
    return Idiom("a reshape of a reshape", pattern, lambda expr, m: relax.op.reshape(m[source], static_shape(expr)))


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


def _eager_attention(scaling: str, biases: int) -> Idiom:
    q, k, v, scale = wildcard(), wildcard(), wildcard(), is_const()
    swapped = is_op("relax.permute_dims")(k)
    scores = is_op(scaling)(is_op("relax.matmul")(q, swapped), scale)
    added = [wildcard() for _ in range(biases)]
    for bias in added:
        scores = is_op("relax.add")(scores, bias)
    softmax = is_op("relax.nn.softmax")(scores)
    pattern = is_op("relax.matmul")(softmax, v)

    def replace(_expr: relax.Expr, m: Matches) -> relax.Expr | None:
        axes = m[swapped].attrs.axes
        shapes = [static_shape(m[p]) for p in (q, k, v)]
        if axes is None or [int(a) for a in axes] != [0, 1, 3, 2] or int(m[softmax].attrs.axis) not in (-1, 3):
            return None
        value = scalar(m[scale])
        if any(len(s) != 4 for s in shapes) or len(set(shapes)) != 1 or value is None:
            return None
        bias = None
        for p in added:
            bias = m[p] if bias is None else relax.op.add(bias, m[p])
        heads = [relax.op.permute_dims(m[p], HEADS_FIRST) for p in (q, k, v)]
        out = relax.op.nn.attention(*heads, bias, scale=1 / value if scaling == "relax.divide" else value)
        return relax.op.permute_dims(out, HEADS_FIRST)

    return Idiom(f"attention spelt out ({scaling}, {biases} biases)", pattern, replace)


def _attention_under_a_triangle() -> Idiom:
    q, k, v, keys, triangle = *(wildcard() for _ in range(4)), is_const()
    pattern = is_op("relax.nn.attention_bias")(q, k, v, is_op("relax.minimum")(keys, triangle))

    def replace(expr: relax.Call, m: Matches) -> relax.Expr | None:
        hidden = constant(m[triangle])
        length = static_shape(m[q])[1]
        if hidden is None or hidden.shape != (1, 1, length, length):
            return None
        later = np.triu(np.ones((length, length), np.bool_), 1)
        if not ((hidden[0, 0][~later] == 0).all() and (hidden[0, 0][later] < HIDDEN).all()):
            return None
        return relax.op.nn.attention(
            m[q], m[k], m[v], m[keys], scale=_scale(expr, static_shape(m[q])[3]), causal_mask="TopLeft"
        )

    return Idiom("causal attention", pattern, replace)


def _scale(call: relax.Call, dim: int) -> float:
    return float(call.attrs.scale) if call.attrs.scale is not None else dim**-0.5


IDIOMS = (
    _same_shape("relax.broadcast_to"),
    _reshaped_twice(),
    _joined_with_nothing(),
    _same_shape("relax.reshape"),
    _gelu_tanh(),
    _silu(sigmoid_first=False),
    _silu(sigmoid_first=True),
    _rms_norm(weight_first=True),
    _rms_norm(weight_first=False),
    *(_eager_attention(s, n) for s in ("relax.divide", "relax.multiply") for n in (2, 1, 0)),
    _attention_under_a_triangle(),
    _cancelled_transposes(),
)


@tvm.transform.module_pass(opt_level=0, name="RecogniseIdioms")
class RecogniseIdioms:
    """Apply every row of IDIOMS to every Relax function, in order."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rewrite the module."""
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                for idiom in IDIOMS:
                    func = rewrite_call(idiom.pattern, _rewriter(idiom), func)  # noqa: PLW2901
                mod[var] = func
        return mod


def _rewriter(idiom: Idiom) -> Callable[[relax.Expr, Any], relax.Expr]:
    def rewrite(expr: relax.Expr, matches: Any) -> relax.Expr:
        replacement = idiom.replace(expr, matches)
        return expr if replacement is None else replacement

    return rewrite
