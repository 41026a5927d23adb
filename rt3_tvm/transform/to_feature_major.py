"""Phase 4: rebuild ``main`` with our kernels on feature-major activations.

Chains of linears, attention, norms and elementwise operators need no transpose in this layout; one is made where an operator
without a kernel needs a plain tensor, and where results leave. This file walks over the bindings; what becomes of a composite
or an operator is in ``lower/``.
"""

import tvm
from tvm import IRModule, relax, tirx

from rt3_tvm.transform.composites import composite_of
from rt3_tvm.transform.context import WEIGHTS_ATTR, VariantContext
from rt3_tvm.transform.layouts import Layouts
from rt3_tvm.transform.lower import COMPOSITE_LOWERINGS, OPERATOR_LOWERINGS


class _Lowering(Layouts):
    """Rebuilds ``main`` binding by binding."""

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
            self.bound_tuples[var] = list(value.fields)
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.tuples:
            self.feature_major[var] = self.tuples[value.tuple_value][value.index]
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.bound_tuples:
            self.plain[var] = self.as_plain(self.bound_tuples[value.tuple_value][value.index])
        elif not (isinstance(value, relax.Call) and self._lower_call(var, value)):
            self.plain[var] = self._generic(value)

    def _lower_call(self, var: relax.Var, call: relax.Call) -> bool:
        """Lower a call; False where there is nothing of ours for it."""
        if isinstance(call.op, tvm.ir.GlobalVar):
            func = self.mod[call.op]
            row = composite_of(func)
            if row is None:
                return False
            return COMPOSITE_LOWERINGS[row.kind](self, var, row, func, row.arguments(func, call))
        operator = OPERATOR_LOWERINGS.get(call.op.name)
        return operator is not None and operator(self, var, call)

    def _generic(self, value: relax.Expr) -> relax.Expr:
        """Emit an expression as it stands, on plain operands."""
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
