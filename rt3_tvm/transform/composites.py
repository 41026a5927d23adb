"""The shapes of graph that have kernels: one row per composite, matched by data flow, never by layer names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import tvm
from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax.dpl import DFPattern, TuplePattern, is_op, wildcard
from tvm.relax.transform import FusionPattern, PatternCheckContext

from rt3_tvm.schedules.layout import REAL

ACTIVATION_OPS = {
    "gelu": "relax.nn.gelu",
    "gelu_tanh": "relax.nn.gelu_tanh",
    "relu": "relax.nn.relu",
    "silu": "relax.nn.silu",
    "tanh": "relax.tanh",
}

CompositeKind = Literal["linear", "attention", "relative_scores", "rotary", "norm", "embedding"]
"""What a composite does, whatever its variant: there is one lowering for each kind."""

ATTENTION = "rt3.attention"
"""Name of the composite that FuseAttention makes."""
RELATIVE_SCORES = "rt3.relative_scores"
"""Name of what it makes of the scores of relative positions that are added to others."""


@dataclass(frozen=True, eq=False)
class Composite:
    """One composite; without a pattern, one whose functions name their parameters by role.

    ``roles`` names the wildcards, so that a fused function's parameters can be told apart; ``activation`` and
    ``transposed`` (the weight is stored as (cols, rows)) are for linears, ``operator`` (of Relax) is for norms.
    """

    name: str
    kind: CompositeKind
    pattern: DFPattern | None
    roles: dict[str, DFPattern]
    check: Callable[[dict[str, relax.Expr]], bool] = field(default=lambda _: True)
    activation: str = "none"
    transposed: bool = False
    operator: str = ""
    inner: dict[str, DFPattern] = field(default_factory=dict)
    """Patterns inside that the check wants to see by name."""

    def fusion_pattern(self) -> FusionPattern:
        """Return the row as TVM's fusion pass takes it."""

        def check(context: PatternCheckContext) -> bool:
            return self.check({name: context.annotated_expr[name] for name in (*self.roles, *self.inner)})

        return FusionPattern(self.name, self.pattern, self.roles | self.inner, check)

    def match(self, func: relax.Function) -> Mapping[DFPattern, relax.Expr] | None:
        """Return what the parts of the pattern are in a fused function."""
        if self.pattern is None:
            return {} if str(func.attrs["Composite"]) == self.name else None
        values = relax.analysis.get_var2val(func)
        results = [values.get(f, f) for f in result_fields(func)]
        return next(filter(None, (self.pattern.extract_matched_expr(r, values) for r in results)), None)

    def arguments(self, func: relax.Function, call: relax.Call) -> dict[str, relax.Expr]:
        """Return what a call of the fused function passes, by role."""
        if self.pattern is None:
            return {param.name: arg for param, arg in zip(func.params, call.args, strict=True)}
        matched = self.match(func)
        assert matched is not None
        position = {param: i for i, param in enumerate(func.params)}
        found = {}
        for role, pattern in self.roles.items():
            expr = matched[pattern]
            found[role] = call.args[position[expr]] if expr in position else expr
        return found


def result_fields(func: relax.Function) -> list[relax.Expr]:
    """Return what a fused function returns: more than one value where an inner one is used outside too."""
    body = func.body.body if isinstance(func.body, relax.SeqExpr) else func.body
    value = relax.analysis.get_var2val(func).get(body, body)
    return list(value.fields) if isinstance(value, relax.Tuple) else [body]


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """Return the shape of a tensor; every shape is static here."""
    return tuple(int(d) for d in expr.ty.shape)


def is_real(expr: relax.Expr) -> bool:
    """Return whether an expression is a tensor of the numbers that models compute in, not of ids or flags."""
    return isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) == REAL.dtype


def _is_linear(transposed: bool) -> Callable[[dict[str, relax.Expr]], bool]:
    def check(e: dict[str, relax.Expr]) -> bool:
        weight = static_shape(e["weight"])
        if len(weight) != 2 or not all(is_real(x) for x in e.values()) or len(static_shape(e["x"])) not in (2, 3):
            return False
        if "bias" not in e:
            return True
        # A constant is no weight that could be packed: it is added behind the layer.
        return static_shape(e["bias"]) == (weight[1 if transposed else 0],) and not isinstance(e["bias"], GenericConst)

    return check


def _linears(transposed: bool) -> Iterator[Composite]:
    """Yield linear layers, the longest chain first."""
    for activation in (*ACTIVATION_OPS, "none"):
        for with_bias in (True, False):
            x, weight, bias = wildcard(), wildcard(), wildcard()
            out = is_op("relax.matmul")(x, weight if transposed else is_op("relax.permute_dims")(weight))
            roles = {"x": x, "weight": weight}
            if with_bias:
                out = is_op("relax.add")(out, bias)
                roles["bias"] = bias
            if activation != "none":
                out = is_op(ACTIVATION_OPS[activation])(out)
            parts = ("transposed" if transposed else "", "bias" if with_bias else "", activation)
            name = "_".join(["rt3.linear", *(part for part in parts if part not in ("", "none"))])
            yield Composite(name, "linear", out, roles, _is_linear(transposed), activation, transposed)


def _attention() -> Composite:
    """Return attention on (batch, heads, length, dim): its functions are made by FuseAttention, with these parameters."""
    return Composite(ATTENTION, "attention", None, {})


def _relative_scores() -> Composite:
    """Return scores of relative positions: as those of attention, their functions are made by FuseAttention."""
    return Composite(RELATIVE_SCORES, "relative_scores", None, {})


def _rotary() -> Composite:
    """Return rotary positions on (batch, heads, length, dim): x * cos + rotated(x) * sin, the halves of dim rotated."""
    x, cos, sin = wildcard(), wildcard(), wildcard()
    low, high = (is_op("relax.strided_slice")(x, *(wildcard() for _ in range(4))) for _ in range(2))
    rotated = is_op("relax.concat")(TuplePattern([is_op("relax.negative")(high), low]))
    out = is_op("relax.add")(is_op("relax.multiply")(x, cos), is_op("relax.multiply")(rotated, sin))

    def check(e: dict[str, relax.Expr]) -> bool:
        shape, half = static_shape(e["x"]), static_shape(e["low"])
        tables = static_shape(e["cos"]), static_shape(e["sin"])
        if len(shape) != 4 or shape[3] % 2 or half != (*shape[:3], shape[3] // 2) or half != static_shape(e["high"]):
            return False
        begins = [int(e[r].args[2].fields[0].value) for r in ("low", "high")]
        return begins == [0, shape[3] // 2] and tables == ((1, 1, *shape[2:]),) * 2 and is_real(e["x"])

    roles = {"x": x, "cos": cos, "sin": sin}
    return Composite("rt3.rotary", "rotary", out, roles, check, inner={"low": low, "high": high})


def _norm(norm: str, with_residual: bool) -> Composite:
    operator = f"relax.nn.{norm}"
    x, residual, gamma, beta = wildcard(), wildcard(), wildcard(), wildcard()
    scales = {"gamma": gamma, "beta": beta} if norm == "layer_norm" else {"gamma": gamma}
    roles = {"x": x, **scales} | ({"residual": residual} if with_residual else {})
    source = is_op("relax.add")(x, residual) if with_residual else x

    def check(e: dict[str, relax.Expr]) -> bool:
        same = not with_residual or static_shape(e["x"]) == static_shape(e["residual"])
        return same and is_real(e["x"]) and len(static_shape(e["x"])) in (2, 3) and len(static_shape(e["gamma"])) == 1

    name = f"rt3.add_{norm}" if with_residual else f"rt3.{norm}"
    return Composite(name, "norm", is_op(operator)(source, *scales.values()), roles, check, operator=operator)


def _embedding() -> Composite:
    table, ids = wildcard(), wildcard()
    out = is_op("relax.reshape")(is_op("relax.take")(table, ids), wildcard())

    def check(e: dict[str, relax.Expr]) -> bool:
        return len(static_shape(e["table"])) == 2 and len(static_shape(e["ids"])) == 1 and is_real(e["table"])

    return Composite("rt3.embedding", "embedding", out, {"table": table, "ids": ids}, check)


def composites() -> dict[str, Composite]:
    """Return the table of composites by name, in order of priority."""
    rows = [
        *_linears(transposed=False),
        *_linears(transposed=True),
        _rotary(),
        _attention(),
        _relative_scores(),
        *(_norm(norm, residual) for norm in ("layer_norm", "rms_norm") for residual in (True, False)),
        _embedding(),
    ]
    return {row.name: row for row in rows}


COMPOSITES = composites()


def composite_of(func: tvm.ir.BaseFunc) -> Composite | None:
    """Return the row of a fused function.

    TVM's fusion also names a function after a longer pattern whose first operators it has left to another function: then the
    row is the one that fits what is left.
    """
    name = str(func.attrs.get("Composite", "")) if isinstance(func, relax.Function) and func.attrs else ""
    if name not in COMPOSITES:
        return None
    rows = [COMPOSITES[name], *COMPOSITES.values()]
    return next((row for row in rows if row.match(func) is not None), None)


def find_op(func: relax.Function, name: str) -> relax.Call:
    """Return the only call of an operator in a fused function."""
    values = relax.analysis.get_var2val(func).values()
    return next(v for v in values if isinstance(v, relax.Call) and getattr(v.op, "name", "") == name)
