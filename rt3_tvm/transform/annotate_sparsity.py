"""Phase 3: say on every linear composite which matrix it is, how it is pruned at this level, and which kernel serves it."""

import tvm
from tvm import IRModule, relax
from tvm.relax.utils import copy_with_new_vars

from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, plan_linear
from rt3_tvm.transform.composites import composite_of, static_shape
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.layouts import token_shape
from rt3_tvm.transform.linear_annotation import Cut, LinearAnnotation


@tvm.transform.module_pass(opt_level=0, name="AnnotateSparsity")
class AnnotateSparsity:
    """Give every call of a linear composite a function of its own with ``rt3.*`` attributes."""

    def __init__(self, context: VariantContext) -> None:
        self.context = context

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rewrite the calls in ``main``."""
        context, values = self.context, relax.analysis.get_var2val(mod["main"])

        @relax.expr_functor.mutator
        class Annotator(relax.PyExprMutator):
            def visit_call_(self, call: relax.Call) -> relax.Expr:
                call = super().visit_call_(call)
                func = mod[call.op] if isinstance(call.op, tvm.ir.GlobalVar) else None
                row = composite_of(func)
                if row is None or row.kind != "linear":
                    return call
                assert func is not None
                arguments = row.arguments(func, call)
                name = context.parameters.get(getattr(_origin(arguments["weight"], values), "name", ""), "")
                bias = arguments.get("bias")
                if not name or (bias is not None and bias.name not in context.parameters):
                    return call  # a product of two inputs, or a bias that is computed: no layer
                rows, cols = static_shape(arguments["weight"])[:: -1 if row.transposed else 1]
                t = token_shape(arguments["x"])
                annotation = _annotation(context, name, (rows, cols), TokenCount(t.batch, t.length))
                annotated = copy_with_new_vars(func).with_attrs(annotation.to_attrs())
                return relax.Call(self.builder_.add_func(annotated, call.op.name_hint), call.args, None, [])

        annotator = Annotator(mod)
        main = mod.get_global_var("main")
        annotator.builder_.update_func(main, annotator.visit_expr(mod["main"]))
        return relax.transform.DeadCodeElimination(["main"])(annotator.builder_.get())


RESHAPE = tvm.ir.Op.get("relax.reshape")


def _origin(expr: relax.Expr, values: dict) -> relax.Expr:
    """Return the parameter behind reshapes."""
    value = values.get(expr)
    while isinstance(value, relax.Call) and value.op == RESHAPE:
        expr = value.args[0]
        value = values.get(expr)
    return expr


def _annotation(context: VariantContext, name: str, shape: tuple[int, int], tokens: TokenCount) -> LinearAnnotation:
    """Return what is to be said of one matrix: nothing of patterns where it is not pruned."""
    matrix, element = context.matrices.get(name), context.element_of(name)
    if matrix is None:
        return LinearAnnotation(name, plan_linear(context.cpu, MatrixShape.dense_of(*shape), tokens, element))
    sizes = MatrixShape(*matrix.backbone.shape, matrix.group_columns()[0].shape[1], matrix.patterns.shape.group)
    plan = plan_linear(context.cpu, sizes, tokens, element)
    return LinearAnnotation(name, plan, context.level, matrix.density, Cut.of(matrix))
