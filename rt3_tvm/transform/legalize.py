"""Phase 5: everything that is still an operator becomes TIR, elementwise chains fused, exp and erf as vector code."""

import math
from collections.abc import Callable

import tvm
from tvm import relax, te, tirx

from rt3_tvm.schedules import FLOPS_ATTR, KERNEL_ATTR, vector_math
from rt3_tvm.schedules import matmul as matmul_kernel
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.matmul import BatchIndex, MatmulShape
from rt3_tvm.transform.composites import is_float32, static_shape
from rt3_tvm.transform.layouts import OPAQUE


def _elementwise(function: Callable[[tirx.Expr], tirx.Expr]) -> Callable:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        def apply(x: te.Tensor) -> te.Tensor:
            return te.compute(x.shape, lambda *i: function(x(*i)), name="y")

        return builder.call_te(apply, call.args[0], primfunc_name_hint=function.__name__)

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


def _matmul(cpu: CpuShape) -> Callable:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        """Legalise a product of float32 matrices to our kernel; what it does not take, as TVM does."""
        shape = matmul_shape(*(static_shape(a) for a in call.args))
        if shape is None or not all(map(is_float32, call.args)):
            return tvm.ir.Op.get("relax.matmul").get_attr("FLegalize")(builder, call)
        kernel = matmul_kernel.matmul(shape, matmul_kernel.register_block(shape, cpu))
        kernel = kernel.with_attrs({KERNEL_ATTR: "matmul", "op_pattern": OPAQUE, FLOPS_ATTR: shape.flops})
        left = builder.emit(relax.op.reshape(call.args[0], (shape.left.count, shape.rows, shape.inner)))
        right = builder.emit(relax.op.reshape(call.args[1], (shape.right.count, shape.inner, shape.columns)))
        ty = relax.TensorType((shape.batch, shape.rows, shape.columns), "float32")
        result = builder.emit(relax.call_tir(builder.add_func(kernel, "matmul"), [left, right], ty))
        return relax.op.reshape(result, static_shape(call))

    return legalize


def matmul_shape(left: tuple[int, ...], right: tuple[int, ...]) -> MatmulShape | None:
    """Return a product of tensors as a batch of matrices; None where an operand is a vector or is broadcast in pieces."""
    if min(len(left), len(right)) < 2:
        return None
    if len(right) == 2:  # one matrix for all rows
        return MatmulShape(1, math.prod(left[:-1]), left[-1], right[-1], BatchIndex(1), BatchIndex(1))
    rank = max(len(left), len(right)) - 2
    batches = [(1,) * (rank + 2 - len(shape)) + shape[:-2] for shape in (left, right)]
    whole = tuple(map(max, *batches))
    indices = [_batch_index(batch, whole) for batch in batches]
    if indices[0] is None or indices[1] is None:
        return None
    return MatmulShape(math.prod(whole), left[-2], left[-1], right[-1], indices[0], indices[1])


def _batch_index(batch: tuple[int, ...], whole: tuple[int, ...]) -> BatchIndex | None:
    """Return how an operand is broadcast, if the axes that it has lie beside each other."""
    own = [i for i, n in enumerate(batch) if n > 1]
    if not own:
        return BatchIndex(1)
    first, last = own[0], own[-1] + 1
    if batch[first:last] != whole[first:last]:
        return None
    return BatchIndex(math.prod(batch), math.prod(whole[last:]))


OURS = {
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
    return [
        relax.transform.LegalizeOps(OURS | {"relax.matmul": _matmul(cpu)}, skip_ops=list(ALIASES)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]
