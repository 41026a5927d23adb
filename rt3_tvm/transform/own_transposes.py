"""Phase 1, last: each linear layer gets the transpose of its weight to itself."""

import tvm
from tvm import IRModule, relax

from rt3_tvm.transform.composites import static_shape


@tvm.transform.module_pass(opt_level=0, name="OwnTransposes")
class OwnTransposes:
    """Repeat the transpose of a matrix before each product that takes it.

    Layers that share a weight (ALBERT) share its transpose too. Fusion moves it into the function of one of them, and the others
    would use it before its definition.
    """

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rewrite the products of ``main``."""
        values = relax.analysis.get_var2val(mod["main"])

        @relax.expr_functor.mutator
        class Repeater(relax.PyExprMutator):
            def visit_call_(self, call: relax.Call) -> relax.Expr:
                call = super().visit_call_(call)
                if getattr(call.op, "name", "") != "relax.matmul":
                    return call
                source = values.get(call.args[1])
                if source is None or not _is_transposed_matrix(source):
                    return call
                own = self.builder_.emit(relax.op.permute_dims(source.args[0], source.attrs.axes))
                return relax.Call(call.op, [call.args[0], own], call.attrs, call.ty_args)

        repeater = Repeater(mod)
        main = mod.get_global_var("main")
        repeater.builder_.update_func(main, repeater.visit_expr(mod["main"]))
        return relax.transform.DeadCodeElimination(["main"])(repeater.builder_.get())


def _is_transposed_matrix(value: relax.Expr) -> bool:
    transposed = isinstance(value, relax.Call) and value.op.name == "relax.permute_dims"
    return transposed and len(static_shape(value.args[0])) == 2
