"""Phase 3: say on every linear composite which matrix it is, how it is pruned at this level, and which kernel serves it."""

import tvm
from tvm import IRModule, relax

from rt3_tvm.schedules.linear_decisions import sparse_pays
from rt3_tvm.transform.composites import composite_of
from rt3_tvm.transform.context import UNPRUNED, VariantContext


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
                if row is None or not row.name.startswith("rt3.linear"):
                    return call
                weight = row.arguments(func, call)["weight"]
                name = context.parameters.get(getattr(_origin(weight, values), "name", ""), "")
                assert func is not None
                annotated = func.with_attrs(_attributes(context, name))
                return relax.Call(self.builder_.add_func(annotated, call.op.name_hint), call.args, None, [])

        annotator = Annotator(mod)
        main = mod.get_global_var("main")
        annotator.builder_.update_func(main, annotator.visit_expr(mod["main"]))
        return relax.transform.DeadCodeElimination(["main"])(annotator.builder_.get())


def _origin(expr: relax.Expr, values: dict) -> relax.Expr:
    """Return the parameter behind reshapes."""
    value = values.get(expr)
    while isinstance(value, relax.Call) and value.op.name == "relax.reshape":
        expr = value.args[0]
        value = values.get(expr)
    return expr


def _attributes(context: VariantContext, name: str) -> dict[str, object]:
    """Return the attributes of one matrix: none of its patterns where it is not pruned."""
    matrix = context.matrices.get(name)
    if matrix is None:
        return {"rt3.matrix": name, "rt3.level": UNPRUNED, "rt3.density": 1.0, "rt3.kernel": "dense_linear"}
    shape, backbone = matrix.patterns.shape, matrix.backbone
    kept = matrix.group_columns()[0].shape[1]
    kernel = "pattern_linear" if sparse_pays(context.cpu, *backbone.shape, kept, shape.group) else "dense_linear"
    return {
        "rt3.matrix": name,
        "rt3.level": context.level,
        "rt3.density": matrix.density,
        "rt3.kernel": kernel,
        "rt3.block": [backbone.block_rows, backbone.shape[1]],
        "rt3.block_density": backbone.density,
        "rt3.pattern_shape": [shape.rows, shape.cols],
        "rt3.group": shape.group,
        "rt3.patterns": len(matrix.patterns.columns),
    }
