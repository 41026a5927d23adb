"""Phase 2: everything between queries, keys, values and the context of attention becomes one function.

Found by data flow from each softmax; see attention_scores.py for what may stand before it. The function takes q (batch,
heads, queries, dim), k and v (batch, kv heads, keys, ..) and what is left of the biases; its body says what they mean, its
attributes what the kernel needs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import IRModule, relax

from rt3_tvm.schedules.attention_mask import StaticMask, analyse
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.transform.attention_bias import MASK_VALUE, BiasParts, Shape4
from rt3_tvm.transform.attention_scores import SCORE_RANKS, Scores, scores_of
from rt3_tvm.transform.composites import ATTENTION, is_real, static_shape
from rt3_tvm.transform.graph import Graph, bindings_of, constant, real
from rt3_tvm.transform.recognise_idioms import LAST_TWO
from rt3_tvm.transform.relative_scores import Relative, Segments, relative_function, same_gate


@dataclass(frozen=True, eq=False)
class Attention:
    """A softmax of scores and the values it mixes; ``k`` of the scores is (.., dim, keys)."""

    scores: Scores
    v: relax.Expr


@tvm.transform.module_pass(opt_level=0, name="FuseAttention")
class FuseAttention:
    """Replace attention in ``main`` by calls of functions with the attributes ``Composite`` and ``rt3.*``."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rewrite ``main``; operators that nothing uses any more are left to dead code elimination."""
        main = mod["main"]
        rewriter = _Rewriter(mod, main)
        blocks = [rewriter.block(block) for block in main.body.blocks]
        body = relax.SeqExpr(blocks, main.body.body)
        func = relax.Function(main.params, body, main.ret_ty, attrs=main.attrs)
        rewriter.builder.update_func(mod.get_global_var("main"), func)
        return rewriter.builder.get()


class _Rewriter:
    def __init__(self, mod: IRModule, main: relax.Function) -> None:
        self.builder, self.graph = relax.BlockBuilder(mod), Graph(main)
        self.fused: dict[relax.Var, Attention] = dict(_found(self.graph, main))
        self.bindings: list[relax.Binding] = []

    def block(self, block: relax.BindingBlock) -> relax.BindingBlock:
        """Return a block with its attention replaced."""
        self.bindings = []
        for binding in block.bindings:
            found = self.fused.get(binding.var)
            value = self.attention(found, static_shape(binding.var)) if found is not None else None
            self.bindings.append(binding if value is None else relax.VarBinding(binding.var, value))
        return type(block)(self.bindings)

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Bind an expression to a new variable."""
        value = self.builder.normalize(expr)
        var = relax.DataflowVar("attention", value.ty)
        self.bindings.append(relax.VarBinding(var, value))
        return var

    def attention(self, found: Attention, shape: tuple[int, ...]) -> relax.Expr | None:
        """Return the call that computes a result of ``shape``; None where the operands do not fit together."""
        heads = found.scores.heads or (static_shape(found.scores.q)[0], 1)
        q, v = (self.heads_first(x, heads) for x in (found.scores.q, found.v))
        k = self.transposed(found.scores.k, heads)
        once = self.ungrouped(k), self.ungrouped(v)
        if static_shape(once[0])[1] == static_shape(once[1])[1]:
            k, v = once
        if not _fit(static_shape(q), static_shape(k), static_shape(v)):
            return None
        batch, count, queries, _ = static_shape(q)
        parts = BiasParts(self.graph, self.emit, (batch, count, queries, static_shape(k)[2]))
        parts.collect(found.scores)
        mask = self.static(parts)
        arguments = {"q": q, "k": k, "v": v} | self.biases(parts)
        func = attention_function(arguments, found.scores.scale, found.scores.soft_cap, mask)
        call = relax.Call(self.builder.add_func(func, "attention"), list(arguments.values()), None, [])
        return call if len(shape) == 4 else relax.op.reshape(self.emit(call), shape)

    def heads_first(self, expr: relax.Expr, heads: tuple[int, int]) -> relax.Expr:
        """Return (batch * heads, length, dim) as (batch, heads, length, dim), which a reshape may have been made of."""
        shape = static_shape(expr)
        if len(shape) == 4:
            return expr
        wanted = (*heads, *shape[1:]) if shape[0] == heads[0] * heads[1] else (shape[0], 1, *shape[1:])
        source = self.graph.call(expr, "reshape")
        if source is not None and static_shape(source.args[0]) == wanted:
            return source.args[0]
        return self.emit(relax.op.reshape(expr, wanted))

    def transposed(self, expr: relax.Expr, heads: tuple[int, int]) -> relax.Expr:
        """Return k (batch, heads, keys, dim) of (.., dim, keys), which is most often what was transposed."""
        call, rank = self.graph.call(expr, "permute_dims"), len(static_shape(expr))
        if rank == 3 and call is not None and _axes(call, 3) == [0, 2, 1]:
            return self.heads_first(call.args[0], heads)
        if rank == 3:
            expr = self.heads_first(expr, heads)
            call = self.graph.call(expr, "permute_dims")
        if call is None:
            return self.emit(relax.op.permute_dims(expr, LAST_TWO))
        axes = [_axes(call, 4)[i] for i in LAST_TWO]
        return call.args[0] if axes == [0, 1, 2, 3] else self.emit(relax.op.permute_dims(call.args[0], axes))

    def ungrouped(self, expr: relax.Expr) -> relax.Expr:
        """Return the (batch, kv heads, length, dim) tensor that was repeated for each head of its group."""
        reshape = self.graph.call(expr, "reshape")
        spread = self.graph.call(reshape.args[0], "broadcast_to") if reshape is not None else None
        expanded = self.graph.call(spread.args[0], "expand_dims", "reshape") if spread is not None else None
        if expanded is None:
            return expr
        batch, heads, length, dim = static_shape(expr)
        source = expanded.args[0]
        groups = static_shape(source)[1] if len(static_shape(source)) == 4 else 0
        fits = static_shape(source) == (batch, groups, length, dim) and groups and heads % groups == 0
        one = static_shape(expanded) == (batch, groups, 1, length, dim)
        spread_out = static_shape(spread) == (batch, groups, heads // (groups or 1), length, dim)
        return source if fits and one and spread_out else expr

    def static(self, parts: BiasParts) -> StaticMask | None:
        """Return what the constant part hides, and leave in ``parts`` what must be added all the same."""
        array, (_, _, queries, keys) = parts.constant, parts.shape
        if array.shape[2] == 1 or not array.any():
            # The same for all queries: for a key a bias, for all keys nothing to a softmax.
            if array.shape[3] > 1 and array.any():
                parts.keys.append(real(array))
            return None
        array = np.broadcast_to(array, (*array.shape[:2], queries, keys))
        mask, whole = analyse(array)
        if not whole:
            parts.scores.append(real(np.ascontiguousarray(array)))
        return mask

    def biases(self, parts: BiasParts) -> dict[str, relax.Expr]:
        """Return the sums of what is added to keys and to scores, by role."""
        found: dict[str, relax.Expr] = {}
        beside = self.beside_relative(parts)
        for role, terms in (("key_bias", parts.keys), ("score_bias", parts.scores)):
            if terms:
                total, *rest = terms
                for term in rest:
                    total = self.emit(relax.op.add(total, term))
                found[role] = total
        for (relative, factor), segments in zip(parts.relative, beside, strict=True):
            own = self.relative(relative, segments, parts.shape, found.get("score_bias"))
            func = relative_function(own, relative.shift, relative.keys, factor)
            found["score_bias"] = self.called(func, own)
        return found

    def beside_relative(self, parts: BiasParts) -> list[Segments | None]:
        """Return which segments are scaled and gated as relative scores are, for each of these; others become biases."""
        left, beside = list(parts.segments), []
        for relative, factor in parts.relative:
            same = next((i for i, (s, f) in enumerate(left) if f == factor and same_gate(s.gate, relative.gate)), None)
            beside.append(None if same is None else left.pop(same)[0])
        for segments, factor in left:
            parts.add_at_run_time(segments.expr, factor, len(parts.shape))
        return beside

    def relative(
        self, found: Relative, segments: Segments | None, shape: Shape4, bias: relax.Expr | None
    ) -> dict[str, relax.Expr]:
        """Return what the function of relative scores takes, by role."""
        heads = shape[:2]
        arguments = {"q": found.q, "r": self.transposed(found.k, heads)}
        if segments is not None:
            of = segments.products
            pair = {"q": of.q, "r": self.transposed(of.k, heads)}
            flags = constant(segments.flags)
            at_run_time = relax.op.astype(segments.flags, REAL.dtype)
            arguments["flags"] = self.emit(at_run_time) if flags is None else _narrow(flags)
            arguments["segments"] = self.called(relative_function(pair, 0, of.keys, 1.0), pair)
        if found.gate is not None:
            gate = constant(found.gate)
            assert gate is not None
            arguments["gate"] = _narrow(gate)
        return arguments | ({"bias": bias} if bias is not None else {})

    def called(self, func: relax.Function, arguments: dict[str, relax.Expr]) -> relax.Var:
        """Bind the call of a new function."""
        return self.emit(relax.Call(self.builder.add_func(func, "relative_scores"), list(arguments.values()), None, []))


def _narrow(array: np.ndarray) -> relax.Expr:
    """Return a constant (batch or 1, heads or 1, queries, keys) of what is there once or the same for all sequences or heads."""
    whole = array.reshape((1,) * (4 - array.ndim) + array.shape)
    for axis in range(2):
        first = whole.take([0], axis)
        whole = first if np.array_equal(np.broadcast_to(first, whole.shape), whole) else whole
    return real(whole)


def _fit(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Return whether q, k and v are those of one attention; heads of k and v may serve groups of those of q."""
    return len(q) == len(k) == len(v) == 4 and q[0] == k[0] and q[3] == k[3] and k[:3] == v[:3] and q[1] % k[1] == 0


def _axes(call: relax.Call, rank: int) -> list[int]:
    axes = call.attrs.axes
    return [int(a) % rank for a in axes] if axes is not None else list(range(rank))[::-1]


def _found(graph: Graph, main: relax.Function) -> Iterator[tuple[relax.Var, Attention]]:
    """Yield the variables that hold contexts of attention."""
    for binding in bindings_of(main):
        softmax = graph.call(binding.value, "nn.softmax")
        found = _context(graph, binding.var, softmax) if softmax is not None else None
        if found is not None:
            yield found


def _context(graph: Graph, var: relax.Var, softmax: relax.Call) -> tuple[relax.Var, Attention] | None:
    """Follow a softmax over keys to its scores, and to the product with values that alone uses it."""
    rank = len(static_shape(var))
    if int(softmax.attrs.axis) % rank != rank - 1 or rank not in SCORE_RANKS:
        return None
    scores, weights = scores_of(graph, softmax.args[0]), var
    while (user := graph.only_user(weights)) is not None:
        call = graph.call(user)
        if call is None or call.op.name not in ("relax.astype", "relax.reshape", "relax.matmul"):
            return None
        if call.op.name == "relax.matmul":
            return _mixed(scores, weights, user, call)
        if call.op.name == "relax.reshape" and static_shape(user)[-2:] != static_shape(weights)[-2:]:
            return None
        weights = user
    return None


def _mixed(
    scores: Scores | None, weights: relax.Var, user: relax.Var, product: relax.Call
) -> tuple[relax.Var, Attention] | None:
    """Return attention whose weights are the left side of a product with values."""
    left, v = product.args
    rank = len(static_shape(weights))
    if scores is None or not left.same_as(weights) or v.same_as(weights) or not is_real(v):
        return None
    if rank not in SCORE_RANKS or len(static_shape(v)) != rank:
        return None
    if rank == 4 and scores.heads is None:
        scores = replace(scores, heads=(static_shape(weights)[0], static_shape(weights)[1]))
    return user, Attention(scores, v)


def attention_function(
    arguments: dict[str, relax.Expr], scale: float, soft_cap: float, mask: StaticMask | None
) -> relax.Function:
    """Return the function of one attention; its body spells out what it means."""
    params = {role: relax.Var(role, expr.ty) for role, expr in arguments.items()}
    builder = relax.BlockBuilder()
    with builder.function("attention", list(params.values())):
        with builder.dataflow():
            out = builder.emit_output(_spelt(builder.emit, params, scale, soft_cap, mask))
        builder.emit_func_output(out)
    attrs = {"Composite": ATTENTION, "rt3.scale": scale, "rt3.soft_cap": soft_cap}
    if mask is not None:
        attrs["rt3.mask"] = mask.to_attrs()
    return builder.get()["attention"].without_attr("global_symbol").with_attrs(attrs)


def _spelt(
    emit: Callable[[relax.Expr], relax.Var],
    params: dict[str, relax.Var],
    scale: float,
    soft_cap: float,
    mask: StaticMask | None,
) -> relax.Expr:
    op = relax.op
    (_, heads, queries, _), (_, groups, keys, _) = (static_shape(params[r]) for r in "qk")
    k, v = (emit(op.repeat(params[r], heads // groups, 1)) if groups != heads else params[r] for r in "kv")
    scores = emit(op.matmul(params["q"], emit(op.permute_dims(k, LAST_TWO))))
    factor = scale / soft_cap if soft_cap else scale
    scores = emit(op.multiply(scores, real(factor)))
    if soft_cap:
        scores = emit(op.multiply(emit(op.tanh(scores)), real(soft_cap)))
    for role in ("key_bias", "score_bias"):
        if role in params:
            scores = emit(op.add(scores, params[role]))
    if mask is not None:
        band = np.where(mask.shown(queries, keys), 0.0, MASK_VALUE)
        scores = emit(op.add(scores, real(band)))
    return op.matmul(emit(op.nn.softmax(scores, axis=-1)), v)
