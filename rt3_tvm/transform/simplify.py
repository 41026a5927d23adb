"""Phase 1: remove what export leaves behind, so that the composites of the next phase can be seen."""

import tvm
from tvm import IRModule, relax
from tvm.relax.dpl import is_op, rewrite_call, wildcard


@tvm.transform.module_pass(opt_level=0, name="CancelTransposes")
class CancelTransposes:
    """Replace two transposes in a row that undo each other by their input."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rewrite every Relax function."""
        source = wildcard()
        inner = is_op("relax.permute_dims")(source)
        outer = is_op("relax.permute_dims")(inner)

        def rewrite(expr: relax.Expr, matches: dict) -> relax.Expr:
            first, second = matches[inner].attrs.axes, matches[outer].attrs.axes
            if first is None or second is None:
                return expr
            identity = all(int(first[int(axis)]) == i for i, axis in enumerate(second))
            return matches[source] if identity else expr

        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mod[var] = rewrite_call(outer, rewrite, func)
        return mod


def simplify_passes() -> list[tvm.transform.Pass]:
    """Return phase 1."""
    return [
        CancelTransposes(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.FoldConstant(),
        relax.transform.DeadCodeElimination(),
    ]
