"""Phase 5: everything that is still an operator becomes TIR, elementwise chains fused, exp and erf as vector code."""

from collections.abc import Callable

import tvm
from tvm import relax, te, tirx

from rt3_tvm.schedules import vector_math
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.transform.layouts import OPAQUE
from rt3_tvm.transform.lower.matmul import legalize_matmul


def _elementwise(function: Callable[[tirx.Expr], tirx.Expr]) -> Callable:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        def apply(x: te.Tensor) -> te.Tensor:
            return te.compute(x.shape, lambda *i: function(x(*i)), name="y")

        return builder.call_te(apply, call.args[0], primfunc_name_hint=str(call.op.name).rpartition(".")[2])

    return legalize


def _cumsum(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Legalise an inclusive cumulative sum as one sum per element: TVM's own needs its runtime. For short axes: positions."""
    source, shape = call.args[0], [int(d) for d in call.args[0].ty.shape]
    axis, exclusive = call.attrs.axis, bool(call.attrs.exclusive)
    if axis is None or exclusive:
        return call
    axis = int(axis) % len(shape)
    dtype = str(call.ty.dtype)

    def cumsum(x: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, shape[axis]), name="k")

        def total(*i: tirx.Var) -> tirx.Expr:
            value = x(*i[:axis], k, *i[axis + 1 :]).astype(dtype)
            return te.sum(tirx.Select(k <= i[axis], value, tirx.const(0, dtype)), axis=k)

        return te.compute(x.shape, total, name="y")

    return builder.call_te(cumsum, source, primfunc_name_hint="cumsum")


def _pad(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Legalise padding as a kernel that nothing is fused with: what many windows read is computed once, and spelt out once."""
    padded = call.op.get_attr("FLegalize")(builder, call)
    kernel = padded.args[0]
    builder.update_func(kernel, builder.get()[kernel].with_attr("op_pattern", OPAQUE))
    return padded


OURS = {
    "relax.nn.pad": _pad,
    "relax.cumsum": _cumsum,
    "relax.exp": _elementwise(vector_math.exp),
    "relax.erf": _elementwise(vector_math.erf),
    "relax.tanh": _elementwise(vector_math.tanh),
    "relax.sigmoid": _elementwise(vector_math.sigmoid),
    "relax.nn.gelu": _elementwise(vector_math.gelu),
    "relax.nn.gelu_tanh": _elementwise(vector_math.gelu_tanh),
    "relax.nn.silu": _elementwise(vector_math.silu),
}

ALIASES = ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten")
"""Operators that only rename a buffer: they cost nothing and stay."""


def legalize_passes(cpu: CpuShape) -> list[tvm.transform.Pass]:
    """Return phase 5."""
    gelu = vector_math.activation_of("gelu", cpu.unit)
    of_core = {"relax.matmul": legalize_matmul(cpu), "relax.nn.gelu": _elementwise(gelu)}
    return [
        relax.transform.LegalizeOps(OURS | of_core, skip_ops=list(ALIASES)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]
