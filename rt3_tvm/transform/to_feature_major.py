"""Phase 4: rebuild ``main`` with our kernels on feature-major activations.

Chains of linears, attention, norms and elementwise operators need no transpose in this layout; one is made where an operator
without a kernel needs a plain tensor, and where results leave.
"""

from collections.abc import Callable

import tvm
from tvm import IRModule, relax, tirx

from rt3_tvm.schedules import attention as attention_kernel
from rt3_tvm.schedules import layer_norm as norm_kernel
from rt3_tvm.schedules import layout as layout_kernel
from rt3_tvm.schedules import rotary as rotary_kernel
from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.schedules.linear_decisions import TOKEN_TILE
from rt3_tvm.schedules.packing import column_dtype
from rt3_tvm.transform.composites import Composite, composite_of, find_op, result_fields, static_shape
from rt3_tvm.transform.context import WEIGHTS_ATTR, Kind, VariantContext, WeightRef
from rt3_tvm.transform.graph import constant
from rt3_tvm.transform.layouts import Layouts, Tokens, is_scalar, tensor, token_shape, tokens_of
from rt3_tvm.transform.linear_annotation import LinearAnnotation
from rt3_tvm.transform.recognise_idioms import HEADS_FIRST

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "add subtract multiply divide maximum minimum negative exp tanh sigmoid sqrt rsqrt "
        "nn.gelu nn.gelu_tanh nn.relu nn.silu"
    ).split()
)
"""Operators that mean the same in every layout."""

Arguments = dict[str, relax.Expr]


class _Lowering(Layouts):
    """Rebuilds ``main`` binding by binding. Handlers return False for what they have no kernel for."""

    def __init__(self, mod: IRModule, context: VariantContext) -> None:
        super().__init__(mod, context)
        self.tuples: dict[relax.Var, list[relax.Expr]] = {}  # feature-major fields

    # -- composites ------------------------------------------------------------------------------------------------
    def linear(self, var: relax.Var, row: Composite, func: relax.Function, args: Arguments) -> bool:
        """Lower a linear layer to the kernels of its plan."""
        annotation = LinearAnnotation.of(func.attrs)
        if annotation is None:
            return False
        plan = annotation.plan
        bias = self.context.parameters[args["bias"].name] if "bias" in args else ""

        def weight(kind: Kind, shape: tuple[int, ...], dtype: str = plan.element.dtype) -> relax.Var:
            dense = plan.matrix.dense
            ref = WeightRef(kind, annotation.matrix, bias, annotation.level, plan.packing, dense, row.transposed)
            return self.parameter(ref, tensor(shape, dtype))

        t = token_shape(args["x"])
        flat = relax.op.reshape(self.as_feature_major(args["x"]), (t.tiles * t.features * TOKEN_TILE,))
        operands = [
            self.builder.emit(flat),
            weight("values", plan.value_shape),
            weight("offsets", plan.offset_shape, plan.offset_dtype),
            weight("bias", (plan.value_shape[1], plan.packing.rows)),
        ]
        out = Tokens(t.batch, t.length, plan.matrix.rows).ty()
        result: list[relax.Expr] = []
        for part, algorithm in plan.kernels(row.activation, self.context.cpu.lanes):
            flops = annotation.flops_per_tile * part.shape.tiles
            result = [self.kernel(plan.family, algorithm, [*operands, *result], out, flops, bool(result))]
        self.feature_major[var] = result[0]
        return True

    def attention(self, var: relax.Var, _row: Composite, func: relax.Function, args: Arguments) -> bool:
        """Lower attention by what phase 2 has said of it."""
        (batch, heads, queries, dim), (_, kv_heads, keys, v_dim) = (static_shape(args[r]) for r in "qv")
        mask = StaticMask.of(func.attrs["rt3.mask"]) if "rt3.mask" in func.attrs else None

        def spread(role: str) -> tuple[int, int] | None:
            return (static_shape(args[role])[0], static_shape(args[role])[1]) if role in args else None

        shape = attention_kernel.AttentionShape(
            batch,
            queries,
            heads,
            dim,
            float(func.attrs["rt3.scale"]),
            mask,
            spread("key_bias"),
            spread("score_bias"),
            kv_heads,
            v_dim,
            keys,
            float(func.attrs["rt3.soft_cap"]),
        )
        algorithm = attention_kernel.attention(shape, attention_kernel.register_rows(self.context.cpu))
        operands = [self.as_heads_first(args[r]) for r in "qkv"]
        key_bias = self.as_plain(args["key_bias"]) if "key_bias" in args else relax.const([[[[0.0]]]], "float32")
        score_bias = (
            self.as_score_tiles(args["score_bias"]) if "score_bias" in args else relax.const([[[0.0]]], "float32")
        )
        out = Tokens(batch, queries, heads * v_dim)
        self.heads_first[var] = self.kernel(
            "attention", algorithm, [*operands, key_bias, score_bias], out.ty(), shape.flops
        )
        return True

    def rotary(self, var: relax.Var, _row: Composite, _func: relax.Function, args: Arguments) -> bool:
        """Lower rotary positions whose angles are known at compile time."""
        batch, heads, length, dim = static_shape(args["x"])
        tables = [t for t in (constant(args[r]) for r in ("cos", "sin")) if t is not None]
        if len(tables) < 2:
            return False
        angles = [self.as_feature_major(relax.const(table.reshape(1, length, dim))) for table in tables]
        func = rotary_kernel.rotary(batch, length, heads, dim)
        out = Tokens(batch, length, heads * dim)
        self.heads_first[var] = self.kernel("rotary", func, [self.as_heads_first(args["x"]), *angles], out.ty())
        return True

    def norm(self, var: relax.Var, row: Composite, func: relax.Function, args: Arguments) -> bool:
        """Lower LayerNorm or RMSNorm with the residual before it; the sum is kept where it is used again."""
        t, fields = token_shape(args["x"]), result_fields(func)
        operator = row.name.removeprefix("rt3.").removeprefix("add_")
        shape = norm_kernel.NormShape(
            t.tiles,
            t.features,
            float(find_op(func, f"relax.nn.{operator}").attrs.epsilon),
            centred=operator == "layer_norm",
            residual="residual" in args,
            keep_sum=len(fields) > 1,
        )
        x = self.as_feature_major(args["x"])
        other = self.as_feature_major(args["residual"]) if shape.residual else x
        gamma = self.as_plain(args["gamma"])
        operands = [x, other, gamma, self.as_plain(args["beta"]) if shape.centred else gamma]
        algorithm = norm_kernel.layer_norm(shape)
        if not shape.keep_sum:
            self.feature_major[var] = self.kernel("layer_norm", algorithm, operands, t.ty())
            return True
        both = self.kernel("layer_norm", algorithm, operands, [t.ty(), t.ty()])
        values = relax.analysis.get_var2val(func)
        is_sum = [values.get(f, f).op.name == "relax.add" for f in fields]
        self.tuples[var] = [self.builder.emit(relax.TupleGetItem(both, int(kept))) for kept in is_sum]
        return True

    def embedding(self, var: relax.Var, _row: Composite, func: relax.Function, args: Arguments) -> bool:
        """Lower a look-up of rows straight into the feature-major layout."""
        t = tokens_of(func.body if not isinstance(func.body, relax.SeqExpr) else func.body.body)
        table, ids = args["table"], args["ids"]
        if int(find_op(func, "relax.take").attrs.axis) != 0 or t is None or t.batch * t.length != static_shape(ids)[0]:
            return False
        rows, features = static_shape(table)
        name = self.context.parameters.get(table.name, "")
        if name in self.context.matrices:
            self.feature_major[var] = self._pattern_embedding(name, t, ids)
            return True
        algorithm = layout_kernel.embedding(t.batch, t.length, rows, features, str(ids.ty.dtype))
        operands = [self.as_plain(table), self.as_plain(ids)]
        self.feature_major[var] = self.kernel("embedding", algorithm, operands, t.ty())
        return True

    def _pattern_embedding(self, name: str, t: Tokens, ids: relax.Expr) -> relax.Expr:
        matrix = self.context.matrices[name]
        rows, features = matrix.backbone.shape
        kept, group = matrix.group_columns()[0].shape[1], matrix.patterns.shape.group
        dtypes = column_dtype(features), str(ids.ty.dtype)
        algorithm = layout_kernel.pattern_embedding(t.batch, t.length, rows, features, kept, group, dtypes)
        tables = [
            self.parameter(WeightRef("values", name, level=self.context.level), tensor((rows, kept))),
            self.parameter(
                WeightRef("offsets", name, level=self.context.level), tensor((rows // group, kept), dtypes[0])
            ),
        ]
        return self.kernel("pattern_embedding", algorithm, [*tables, self.as_plain(ids)], t.ty())

    # -- single operators ------------------------------------------------------------------------------------------
    def elementwise(self, var: relax.Var, call: relax.Call) -> bool:
        """Apply an elementwise operator in the feature-major layout where one of its operands is already in it."""
        t = tokens_of(var)
        if t is None or not any(a in self.feature_major for a in call.args):
            return False
        operands = [self._elementwise_operand(a, t) for a in call.args]
        if any(o is None for o in operands):
            return False
        self.feature_major[var] = self.builder.emit(relax.Call(call.op, operands, call.attrs, []))
        return True

    def _elementwise_operand(self, expr: relax.Expr, t: Tokens) -> relax.Expr | None:
        own = tokens_of(expr)
        if is_scalar(expr):
            return expr
        if own == t:
            return self.as_feature_major(expr)
        if own == Tokens(1, t.length, t.features):
            return self.builder.emit(relax.op.tile(self.as_feature_major(expr), (t.batch, 1, 1)))
        if static_shape(expr) == (t.features,):
            return self.builder.emit(relax.op.reshape(self.as_plain(expr), (t.features, 1)))
        return None

    def reshape(self, var: relax.Var, call: relax.Call) -> bool:
        """Follow a reshape that keeps the tokens: heads are only a way to count features."""
        source = call.args[0]
        if source not in self.feature_major or tokens_of(source) != tokens_of(var):
            return False
        self.feature_major[var] = self.feature_major[source]
        return True

    def transpose(self, var: relax.Var, call: relax.Call) -> bool:
        """Follow a transpose between (batch, length, heads, dim) and (batch, heads, length, dim)."""
        source, axes = call.args[0], call.attrs.axes
        if axes is None or [int(a) for a in axes] != HEADS_FIRST:
            return False
        if source in self.feature_major:
            self.heads_first[var] = self.feature_major[source]
        elif source in self.heads_first:
            self.feature_major[var] = self.heads_first[source]
        else:
            return False
        return True

    def split(self, var: relax.Var, call: relax.Call) -> bool:
        """Cut features into parts, as fused projections of queries, keys and values need."""
        source = call.args[0]
        shape = static_shape(source)
        if source not in self.feature_major or int(call.attrs.axis) not in (-1, len(shape) - 1) or len(shape) == 4:
            return False
        sizes = [static_shape_of(field)[-1] for field in var.ty.fields]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.tuples[var] = [
            self.builder.emit(relax.op.strided_slice(self.feature_major[source], [1], [start], [start + size]))
            for start, size in zip(starts, sizes, strict=True)
        ]
        return True

    def generic(self, value: relax.Expr) -> relax.Expr:
        """Emit an operator as it stands, on plain operands."""
        if isinstance(value, relax.Call):
            call = relax.Call(value.op, [self._plain_argument(a) for a in value.args], value.attrs, value.ty_args)
            if isinstance(value.op, tvm.ir.GlobalVar):
                return self._inline(self.mod[value.op], call.args)
            return self.builder.emit(call)
        if isinstance(value, relax.Var):
            return self.as_plain(value)
        if isinstance(value, relax.TupleGetItem):
            return self.builder.emit(relax.TupleGetItem(self.as_plain(value.tuple_value), value.index))
        return self.builder.emit(value)

    def _plain_argument(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.as_plain(f) for f in expr.fields])
        return self.as_plain(expr)

    def _inline(self, func: relax.Function, args: list[relax.Expr]) -> relax.Expr:
        """Emit the operators of a composite that has no kernel for its shape."""
        values: dict[relax.Var, relax.Expr] = dict(zip(func.params, args, strict=True))

        def known(expr: relax.Expr) -> relax.Expr:
            if isinstance(expr, relax.Tuple):
                return relax.Tuple([known(f) for f in expr.fields])
            return values.get(expr, expr) if isinstance(expr, relax.Var) else expr

        for block in func.body.blocks:
            for binding in block.bindings:
                value = binding.value
                if isinstance(value, relax.Call):
                    call = relax.Call(value.op, [known(a) for a in value.args], value.attrs, value.ty_args)
                    values[binding.var] = self.builder.emit(call)
                else:
                    values[binding.var] = self.builder.emit(known(value))
        return values[func.body.body]

    # -- the whole function ----------------------------------------------------------------------------------------
    def lower(self) -> IRModule:
        """Return the module with its new ``main``."""
        main = self.mod["main"]
        count = int(main.attrs["num_input"])
        inputs = [relax.Var(p.name, p.ty) for p in main.params[:count]]
        self.plain.update(zip(main.params[:count], inputs, strict=True))
        with self.builder.function("lowered", inputs):
            with self.builder.dataflow():
                for block in main.body.blocks:
                    for binding in block.bindings:
                        self._lower_binding(binding)
                fields = self._outputs(main.body.body)
                output = self.builder.emit_output(relax.Tuple(fields))
            self.builder.emit_func_output(output)
        mod = self.builder.get()
        body = mod["lowered"]
        params = [*body.params, *self.parameters.values()]
        references = [ref.to_attrs() for ref in self.references.values()]
        attrs = {"num_input": count, "global_symbol": "main", WEIGHTS_ATTR: references}
        func = relax.Function(params, body.body, body.ret_ty).with_attrs(attrs)
        kernels = {v: f for v, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
        return IRModule({**kernels, tvm.ir.GlobalVar("main"): func})

    def _outputs(self, result: relax.Var) -> list[relax.Expr]:
        for block in self.mod["main"].body.blocks:
            for binding in block.bindings:
                if binding.var.same_as(result) and isinstance(binding.value, relax.Tuple):
                    return [self.as_plain(f) for f in binding.value.fields]
        return [self.as_plain(result)]

    def _lower_binding(self, binding: relax.Binding) -> None:
        var, value = binding.var, binding.value
        if isinstance(value, relax.Tuple):
            return
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self.tuples:
            self.feature_major[var] = self.tuples[value.tuple_value][value.index]
        elif not (isinstance(value, relax.Call) and self._lower_call(var, value)):
            self.plain[var] = self.generic(value)

    def _lower_call(self, var: relax.Var, call: relax.Call) -> bool:
        if isinstance(call.op, tvm.ir.GlobalVar):
            func = self.mod[call.op]
            row = composite_of(func)
            if row is None:
                return False
            handler = next(h for prefix, h in _COMPOSITE_HANDLERS.items() if row.name.startswith(prefix))
            return handler(self, var, row, func, row.arguments(func, call))
        operator = _OPERATOR_HANDLERS.get(call.op.name)
        if operator is None and call.op.name in ELEMENTWISE:
            operator = _Lowering.elementwise
        return operator is not None and operator(self, var, call)


def static_shape_of(ty: relax.TensorType) -> tuple[int, ...]:
    """Return the shape of a type; every shape is static here."""
    return tuple(int(d) for d in ty.shape)


_COMPOSITE_HANDLERS: dict[str, Callable[..., bool]] = {
    "rt3.linear": _Lowering.linear,
    "rt3.attention": _Lowering.attention,
    "rt3.rotary": _Lowering.rotary,
    "rt3.layer_norm": _Lowering.norm,
    "rt3.rms_norm": _Lowering.norm,
    "rt3.add_": _Lowering.norm,
    "rt3.embedding": _Lowering.embedding,
}

_OPERATOR_HANDLERS: dict[str, Callable[..., bool]] = {
    "relax.reshape": _Lowering.reshape,
    "relax.permute_dims": _Lowering.transpose,
    "relax.split": _Lowering.split,
}


def lower_and_trace(mod: IRModule, context: VariantContext) -> tuple[IRModule, Layouts]:
    """Return the rebuilt module, and where in it each value of the old one is: to look at values of both."""
    lowering = _Lowering(mod, context)
    return lowering.lower(), lowering


@tvm.transform.module_pass(opt_level=0, name="ToFeatureMajor")
class ToFeatureMajor:
    """Replace composites by kernels on feature-major tensors."""

    def __init__(self, context: VariantContext) -> None:
        self.context = context

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rebuild ``main``."""
        return lower_and_trace(mod, self.context)[0]
