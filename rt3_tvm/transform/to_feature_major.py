"""Phase 4: put the whole model into the feature-major layout and replace composites by kernels.

A (batch, length, features) tensor becomes (batch * tiles, features, 16): see ``schedules/pattern_linear.py``. Transposes
stand only where ids enter, where results leave, and around operators that have no feature-major form.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, tirx

from rt3_tvm.schedules import DECISIONS_ATTR, FLOPS_ATTR, KERNEL_ATTR
from rt3_tvm.schedules import attention as attention_kernel
from rt3_tvm.schedules import layer_norm as layer_norm_kernel
from rt3_tvm.schedules import layout as layout_kernel
from rt3_tvm.schedules.layout import tiles_of
from rt3_tvm.schedules.linear_decisions import (
    TOKEN_TILE,
    LinearShape,
    choose_decisions,
    choose_packing,
    padded_kept,
)
from rt3_tvm.schedules.packing import offset_dtype
from rt3_tvm.schedules.pattern_linear import linear_algorithm
from rt3_tvm.transform.composites import COMPOSITES, Composite, find_op, is_float32, static_shape
from rt3_tvm.transform.context import Kind, VariantContext, WeightRef

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "add subtract multiply divide maximum minimum negative exp tanh sigmoid sqrt rsqrt "
        "nn.gelu nn.gelu_tanh nn.relu nn.silu"
    ).split()
)
"""Operators that mean the same in every layout."""

OPAQUE = 8
"""TVM's pattern kind of a function that operator fusion leaves alone: our kernels have schedules of their own."""


@dataclass(frozen=True)
class Tokens:
    """The logical shape behind a feature-major tensor."""

    batch: int
    length: int
    features: int

    @property
    def tiles(self) -> int:
        """Token tiles, each sequence padded to whole ones."""
        return self.batch * tiles_of(self.length)

    def ty(self) -> relax.TensorType:
        """Return the type of the feature-major tensor."""
        return tensor((self.tiles, self.features, TOKEN_TILE))


def tensor(shape: tuple[int, ...], dtype: str = "float32") -> relax.TensorType:
    """Return a tensor type."""
    return relax.TensorType(shape, dtype)


def token_shape(expr: relax.Expr) -> Tokens:
    """Return the logical shape of a tensor that is known to have one."""
    tokens = tokens_of(expr)
    assert tokens is not None
    return tokens


def tokens_of(expr: relax.Expr) -> Tokens | None:
    """Return the logical shape of a (batch, length, features) or (length, features) float32 tensor."""
    if not isinstance(expr.ty, relax.TensorType) or not is_float32(expr):
        return None
    shape = static_shape(expr)
    return Tokens(*shape) if len(shape) == 3 else Tokens(1, *shape) if len(shape) == 2 else None


class _Lowering:
    """Rebuilds ``main`` binding by binding; every tensor is kept in the layouts in which it exists."""

    def __init__(self, mod: IRModule, context: VariantContext) -> None:
        self.mod, self.context = mod, context
        self.builder = relax.BlockBuilder(mod)
        self.plain: dict[relax.Var, relax.Expr] = {}
        self.feature_major: dict[relax.Var, relax.Expr] = {}
        self.parameters: dict[str, relax.Var] = {}

    # -- values ----------------------------------------------------------------------------------------------------
    def as_plain(self, expr: relax.Expr) -> relax.Expr:
        """Return an expression in its own layout, transposing it back once if need be."""
        if not isinstance(expr, relax.Var):
            return expr
        if expr in self.plain:
            return self.plain[expr]
        name = self.context.parameters.get(expr.name)
        if name is not None:
            self.plain[expr] = self.parameter(self.context.raw(name), expr.ty)
        else:
            t = token_shape(expr)
            func = layout_kernel.from_feature_major(t.batch, t.length, t.features)
            self.plain[expr] = self.kernel(
                "from_feature_major", func, [self.feature_major[expr]], tensor(static_shape(expr))
            )
        return self.plain[expr]

    def as_feature_major(self, expr: relax.Expr) -> relax.Expr:
        """Return a token tensor in the feature-major layout, transposing it once if need be."""
        if expr not in self.feature_major:
            t = token_shape(expr)
            func = layout_kernel.to_feature_major(t.batch, t.length, t.features)
            source = self.as_plain(expr)
            if len(static_shape(source)) == 2:
                source = self.builder.emit(relax.op.reshape(source, (t.batch, t.length, t.features)))
            self.feature_major[expr] = self.kernel("to_feature_major", func, [source], t.ty())
        return self.feature_major[expr]

    def parameter(self, ref: WeightRef, ty: relax.TensorType) -> relax.Var:
        """Return the parameter of the new ``main`` that holds a weight."""
        name = self.context.reference(ref)
        if name not in self.parameters:
            self.parameters[name] = relax.Var(name, ty)
        return self.parameters[name]

    def kernel(
        self, family: str, func: tirx.PrimFunc, args: list[relax.Expr], ty: relax.TensorType, flops: float = 0
    ) -> relax.Var:
        """Emit a call of a kernel; equal kernels become one function."""
        func = func.with_attrs({KERNEL_ATTR: family, "op_pattern": OPAQUE, FLOPS_ATTR: round(flops)})
        return self.builder.emit(relax.call_tir(self.builder.add_func(func, family), args, ty))

    # -- composites ------------------------------------------------------------------------------------------------
    def linear(self, row: Composite, func: relax.Function, args: dict[str, relax.Expr]) -> relax.Expr:
        """Lower a linear layer to the kernel that its annotation names."""
        cpu, name = self.context.cpu, str(func.attrs["rt3.matrix"])
        t = token_shape(args["x"])
        rows, cols = static_shape(args["weight"])
        family = str(func.attrs["rt3.kernel"])
        sparse = family == "pattern_linear"
        group = int(func.attrs["rt3.group"]) if sparse else rows
        kept = self.context.matrices[name].group_columns()[0].shape[1] if sparse else cols
        packing = choose_packing(cpu, rows, cols, kept, group)
        shape = LinearShape(t.tiles, rows, cols, padded_kept(kept, packing), group, offset_dtype(cols))
        decisions = choose_decisions(cpu, shape, packing)
        algorithm = linear_algorithm(shape, packing, decisions, cpu.lanes, row.activation)
        algorithm = algorithm.with_attr(DECISIONS_ATTR, decisions.__dict__)
        blocks, block_kept = packing.column_blocks, shape.kept // packing.column_blocks
        bias = self.context.parameters[args["bias"].name] if "bias" in args else ""

        def ref(kind: Kind) -> WeightRef:
            return WeightRef(kind, name, bias, int(func.attrs["rt3.level"]), packing, dense=not sparse)

        flat = self.builder.emit(relax.op.reshape(self.as_feature_major(args["x"]), (t.tiles * cols * TOKEN_TILE,)))
        weights = [
            self.parameter(ref("values"), tensor((blocks, rows // packing.rows, block_kept, packing.rows))),
            self.parameter(ref("offsets"), tensor((blocks, rows // group, block_kept), shape.offset_dtype)),
            self.parameter(ref("bias"), tensor((rows // packing.rows, packing.rows))),
        ]
        flops = 2.0 * rows * cols * t.tiles * TOKEN_TILE * (float(func.attrs["rt3.density"]) if sparse else 1.0)
        return self.kernel(family, algorithm, [flat, *weights], Tokens(t.batch, t.length, rows).ty(), flops)

    def attention(self, _row: Composite, func: relax.Function, args: dict[str, relax.Expr]) -> relax.Expr | None:
        """Lower attention; causal masks and biases that differ by query are taken as biases."""
        t = token_shape(args["q"])
        op = find_op(func, "relax.nn.attention_bias" if "bias" in args else "relax.nn.attention")
        if op.attrs.causal_mask is not None:
            return None
        heads, dim = static_shape(op.args[0])[2:]
        scale = float(op.attrs.scale) if op.attrs.scale is not None else dim**-0.5
        bias_shape = static_shape(args["bias"]) if "bias" in args else None
        if bias_shape is not None and len(bias_shape) != 4:
            return None
        shape = attention_kernel.AttentionShape(t.batch, t.length, heads, dim, scale, bias_shape)
        algorithm = attention_kernel.attention(shape, attention_kernel.register_rows(self.context.cpu))
        bias = self.as_plain(args["bias"]) if "bias" in args else relax.const([[[[0.0]]]], "float32")
        inputs = [self.as_feature_major(args[r]) for r in "qkv"]
        flops = 4.0 * t.features * t.tiles * tiles_of(t.length) * TOKEN_TILE**2
        return self.kernel("attention", algorithm, [*inputs, bias], t.ty(), flops)

    def layer_norm(self, _row: Composite, func: relax.Function, args: dict[str, relax.Expr]) -> relax.Expr:
        """Lower LayerNorm with the residual before it."""
        t = token_shape(args["x"])
        epsilon = float(find_op(func, "relax.nn.layer_norm").attrs.epsilon)
        algorithm = layer_norm_kernel.layer_norm(t.tiles, t.features, epsilon, residual="residual" in args)
        x = self.as_feature_major(args["x"])
        other = self.as_feature_major(args["residual"]) if "residual" in args else x
        scales = [self.as_plain(args["gamma"]), self.as_plain(args["beta"])]
        return self.kernel("layer_norm", algorithm, [x, other, *scales], t.ty())

    def embedding(self, _row: Composite, func: relax.Function, args: dict[str, relax.Expr]) -> relax.Expr | None:
        """Lower a look-up of rows straight into the feature-major layout."""
        t = tokens_of(func.body if not isinstance(func.body, relax.SeqExpr) else func.body.body)
        table, ids = self.as_plain(args["table"]), self.as_plain(args["ids"])
        if int(find_op(func, "relax.take").attrs.axis) != 0 or t is None or t.batch * t.length != static_shape(ids)[0]:
            return None
        rows, features = static_shape(table)
        algorithm = layout_kernel.embedding(t.batch, t.length, rows, features, str(ids.ty.dtype))
        return self.kernel("embedding", algorithm, [table, ids], t.ty())

    # -- single operators ------------------------------------------------------------------------------------------
    def elementwise(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        """Apply an elementwise operator in the feature-major layout where one of its operands is already in it."""
        t = tokens_of(var)
        if t is None or not any(a in self.feature_major for a in call.args):
            return None
        operands = [self._elementwise_operand(a, t) for a in call.args]
        if any(o is None for o in operands):
            return None
        return self.builder.emit(relax.Call(call.op, operands, call.attrs, []))

    def _elementwise_operand(self, expr: relax.Expr, t: Tokens) -> relax.Expr | None:
        own = tokens_of(expr)
        if isinstance(expr, tvm.ir.expr.GenericConst) and not static_shape(expr):
            return expr
        if own == t:
            return self.as_feature_major(expr)
        if own == Tokens(1, t.length, t.features):
            return self.builder.emit(relax.op.tile(self.as_feature_major(expr), (t.batch, 1, 1)))
        if static_shape(expr) == (t.features,):
            return self.builder.emit(relax.op.reshape(self.as_plain(expr), (t.features, 1)))
        return None

    def generic(self, value: relax.Expr) -> relax.Expr:
        """Emit an operator as it stands, on plain operands."""
        if isinstance(value, relax.Call):
            call = relax.Call(value.op, [self.as_plain(a) for a in value.args], value.attrs, value.ty_args)
            if isinstance(value.op, tvm.ir.GlobalVar):
                return self._inline(self.mod[value.op], call.args)
            return self.builder.emit(call)
        if isinstance(value, relax.Var):
            return self.as_plain(value)
        return self.builder.emit(value)

    def _inline(self, func: relax.Function, args: list[relax.Expr]) -> relax.Expr:
        """Emit the operators of a composite that has no kernel for its shape."""
        values: dict[relax.Var, relax.Expr] = dict(zip(func.params, args, strict=True))
        for block in func.body.blocks:
            for binding in block.bindings:
                call = binding.value
                operands = [values.get(a, a) if isinstance(a, relax.Var) else a for a in call.args]
                values[binding.var] = self.builder.emit(relax.Call(call.op, operands, call.attrs, call.ty_args))
        return values[func.body.body]

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
                result = main.body.body
                fields = self._outputs(result)
                output = self.builder.emit_output(relax.Tuple(fields))
            self.builder.emit_func_output(output)
        mod = self.builder.get()
        body = mod["lowered"]
        params = [*body.params, *self.parameters.values()]
        func = relax.Function(params, body.body, body.ret_ty).with_attrs({"num_input": count, "global_symbol": "main"})
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
        lowered = None
        if isinstance(value, relax.Call):
            if isinstance(value.op, tvm.ir.GlobalVar):
                func = self.mod[value.op]
                row = COMPOSITES[str(func.attrs["Composite"])]
                handler = next(h for prefix, h in _HANDLERS.items() if row.name.startswith(prefix))
                lowered = handler(self, row, func, row.arguments(func, value))
            elif value.op.name in ELEMENTWISE:
                lowered = self.elementwise(var, value)
        if lowered is not None:
            self.feature_major[var] = lowered
        else:
            self.plain[var] = self.generic(value)


_HANDLERS: dict[str, Callable[..., relax.Expr | None]] = {
    "rt3.linear": _Lowering.linear,
    "rt3.attention": _Lowering.attention,
    "rt3.layer_norm": _Lowering.layer_norm,
    "rt3.add_layer_norm": _Lowering.layer_norm,
    "rt3.embedding": _Lowering.embedding,
}


@tvm.transform.module_pass(opt_level=0, name="ToFeatureMajor")
class ToFeatureMajor:
    """Replace composites by kernels on feature-major tensors."""

    def __init__(self, context: VariantContext) -> None:
        self.context = context

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rebuild ``main``."""
        return _Lowering(mod, self.context).lower()
