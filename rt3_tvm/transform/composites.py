"""The shapes of graph that have kernels: one row per composite, matched by data flow, never by layer names."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tvm import relax
from tvm.relax.dpl import DFPattern, is_op, wildcard
from tvm.relax.transform import FusionPattern, PatternCheckContext

ACTIVATION_OPS = {
    "gelu": "relax.nn.gelu",
    "gelu_tanh": "relax.nn.gelu_tanh",
    "relu": "relax.nn.relu",
    "silu": "relax.nn.silu",
    "tanh": "relax.tanh",
}


@dataclass(frozen=True, eq=False)
class Composite:
    """One composite.

    ``roles`` names the wildcards, so that a fused function's parameters can be told apart; ``activation`` is for linears.
    """

    name: str
    pattern: DFPattern
    roles: dict[str, DFPattern]
    check: Callable[[dict[str, relax.Expr]], bool] = field(default=lambda _: True)
    activation: str = "none"

    def fusion_pattern(self) -> FusionPattern:
        """Return the row as TVM's fusion pass takes it."""

        def check(context: PatternCheckContext) -> bool:
            return self.check({name: context.annotated_expr[name] for name in self.roles})

        return FusionPattern(self.name, self.pattern, self.roles, check)

    def arguments(self, func: relax.Function, call: relax.Call) -> dict[str, relax.Expr]:
        """Return what a call of the fused function passes, by role."""
        values = relax.analysis.get_var2val(func)
        body = func.body.body if isinstance(func.body, relax.SeqExpr) else func.body
        matched = self.pattern.extract_matched_expr(values.get(body, body), values)
        position = {param: i for i, param in enumerate(func.params)}
        found = {}
        for role, pattern in self.roles.items():
            expr = matched[pattern]
            found[role] = call.args[position[expr]] if expr in position else expr
        return found


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """Return the shape of a tensor; every shape is static here."""
    return tuple(int(d) for d in expr.ty.shape)


def is_float32(expr: relax.Expr) -> bool:
    """Return whether an expression is a float32 tensor."""
    return isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) == "float32"


def _is_linear(e: dict[str, relax.Expr]) -> bool:
    weight = static_shape(e["weight"])
    if len(weight) != 2 or not all(is_float32(x) for x in e.values()) or len(static_shape(e["x"])) not in (2, 3):
        return False
    return "bias" not in e or static_shape(e["bias"]) == (weight[0],)


def _linears() -> Iterator[Composite]:
    """Yield linear layers, the longest chain first."""
    for activation in (*ACTIVATION_OPS, "none"):
        for with_bias in (True, False):
            x, weight, bias = wildcard(), wildcard(), wildcard()
            out = is_op("relax.matmul")(x, is_op("relax.permute_dims")(weight))
            roles = {"x": x, "weight": weight}
            if with_bias:
                out = is_op("relax.add")(out, bias)
                roles["bias"] = bias
            if activation != "none":
                out = is_op(ACTIVATION_OPS[activation])(out)
            name = "rt3.linear" + ("_bias" if with_bias else "") + (f"_{activation}" if activation != "none" else "")
            yield Composite(name, out, roles, _is_linear, activation)


def _is_attention(e: dict[str, relax.Expr]) -> bool:
    shapes = {static_shape(e[r]) for r in "qkv"}
    return len(shapes) == 1 and len(next(iter(shapes))) == 3


def _attention(with_bias: bool) -> Composite:
    q, k, v, bias = wildcard(), wildcard(), wildcard(), wildcard()
    heads = [is_op("relax.reshape")(t, wildcard()) for t in (q, k, v)]
    op = is_op("relax.nn.attention_bias")(*heads, bias) if with_bias else is_op("relax.nn.attention")(*heads)
    roles = {"q": q, "k": k, "v": v} | ({"bias": bias} if with_bias else {})
    out = is_op("relax.reshape")(op, wildcard())
    return Composite("rt3.attention_bias" if with_bias else "rt3.attention", out, roles, _is_attention)


def _layer_norm(with_residual: bool) -> Composite:
    x, residual, gamma, beta = wildcard(), wildcard(), wildcard(), wildcard()
    roles = {"x": x, "gamma": gamma, "beta": beta} | ({"residual": residual} if with_residual else {})
    source = is_op("relax.add")(x, residual) if with_residual else x

    def check(e: dict[str, relax.Expr]) -> bool:
        same = not with_residual or static_shape(e["x"]) == static_shape(e["residual"])
        return same and is_float32(e["x"]) and len(static_shape(e["x"])) == 3 and len(static_shape(e["gamma"])) == 1

    name = "rt3.add_layer_norm" if with_residual else "rt3.layer_norm"
    return Composite(name, is_op("relax.nn.layer_norm")(source, gamma, beta), roles, check)


def _embedding() -> Composite:
    table, ids = wildcard(), wildcard()
    out = is_op("relax.reshape")(is_op("relax.take")(table, ids), wildcard())

    def check(e: dict[str, relax.Expr]) -> bool:
        return len(static_shape(e["table"])) == 2 and len(static_shape(e["ids"])) == 1 and is_float32(e["table"])

    return Composite("rt3.embedding", out, {"table": table, "ids": ids}, check)


def composites() -> dict[str, Composite]:
    """Return the table of composites by name, in order of priority."""
    rows = [*_linears(), _attention(True), _attention(False), _layer_norm(True), _layer_norm(False), _embedding()]
    return {row.name: row for row in rows}


COMPOSITES = composites()


def find_op(func: relax.Function, name: str) -> relax.Call:
    """Return the only call of an operator in a fused function."""
    values = relax.analysis.get_var2val(func).values()
    return next(v for v in values if isinstance(v, relax.Call) and getattr(v.op, "name", "") == name)
