"""Phase 3: say on every linear composite which matrix it is, how it is pruned at this level, and which kernel serves it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax.utils import copy_with_new_vars

from rt3_tvm.pattern import QUAD, SparseMatrix
from rt3_tvm.schedules.layout import ElementType
from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, multiplied_as, plan_linear, planned_element
from rt3_tvm.transform.composites import composite_of, static_shape
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.layouts import token_shape
from rt3_tvm.transform.linear_annotation import Cut, LinearAnnotation


@dataclass(frozen=True)
class LinearUse:
    """One linear layer of the model: the weight, its (rows, cols), the tokens of a call."""

    weight: str
    shape: tuple[int, int]
    tokens: TokenCount

    def matrix(self, pruned: SparseMatrix | None) -> MatrixShape:
        """Return the matrix as it is at a level that prunes it so, or not."""
        if pruned is None:
            return MatrixShape.dense_of(*self.shape)
        kept, shape = pruned.group_columns()[0].shape[1], pruned.patterns.shape
        return MatrixShape(*pruned.backbone.shape, kept, shape.group, shape.adjacent == QUAD)

    def need(self, context: VariantContext) -> tuple[MatrixShape, ElementType]:
        """Return what a plan is needed for: the matrix of a level, and the element type that it is planned in."""
        matrix = self.matrix(context.matrices.get(self.weight))
        element = planned_element(context.cpu, matrix, context.element_of(self.weight))
        return multiplied_as(context.cpu, matrix, element), element


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
                use = _use(mod, call, values, context.parameters)
                if use is None:
                    return call
                annotated = copy_with_new_vars(mod[call.op]).with_attrs(_annotation(context, use).to_attrs())
                return relax.Call(self.builder_.add_func(annotated, call.op.name_hint), call.args, None, [])

        annotator = Annotator(mod)
        main = mod.get_global_var("main")
        annotator.builder_.update_func(main, annotator.visit_expr(mod["main"]))
        return relax.transform.DeadCodeElimination(["main"])(annotator.builder_.get())


def linear_uses(mod: IRModule, parameters: Mapping[str, str]) -> Iterator[LinearUse]:
    """Yield the linear layers that a module calls after phase 2, in the order of the calls."""
    values = relax.analysis.get_var2val(mod["main"])
    for value in values.values():
        use = _use(mod, value, values, parameters) if isinstance(value, relax.Call) else None
        if use is not None:
            yield use


def _use(mod: IRModule, call: relax.Call, values: dict, parameters: Mapping[str, str]) -> LinearUse | None:
    """Return which layer a call is; None for other calls."""
    func = mod[call.op] if isinstance(call.op, tvm.ir.GlobalVar) else None
    row = composite_of(func)
    if row is None or row.kind != "linear":
        return None
    assert func is not None
    arguments = row.arguments(func, call)
    name = parameters.get(getattr(_origin(arguments["weight"], values), "name", ""), "")
    bias = arguments.get("bias")
    if not name or (bias is not None and bias.name not in parameters):
        return None  # a product of two inputs, or a bias that is computed: no layer
    rows, cols = static_shape(arguments["weight"])[:: -1 if row.transposed else 1]
    t = token_shape(arguments["x"])
    return LinearUse(name, (rows, cols), TokenCount(t.batch, t.length))


RESHAPE = tvm.ir.Op.get("relax.reshape")


def _origin(expr: relax.Expr, values: dict) -> relax.Expr:
    """Return the parameter behind reshapes."""
    value = values.get(expr)
    while isinstance(value, relax.Call) and value.op == RESHAPE:
        expr = value.args[0]
        value = values.get(expr)
    return expr


def _annotation(context: VariantContext, use: LinearUse) -> LinearAnnotation:
    """Return what is to be said of one matrix: nothing of patterns where it is not pruned."""
    pruned, element = context.matrices.get(use.weight), context.element_of(use.weight)
    plan = plan_linear(context.cpu, use.matrix(pruned), use.tokens, element, context.tuned)
    if pruned is None:
        return LinearAnnotation(use.weight, plan)
    return LinearAnnotation(use.weight, plan, context.level, pruned.density, Cut.of(pruned))
