"""Products of tensors that are both made at run time to their kernel, when operators are legalised."""

import math
from collections.abc import Callable

import tvm
from tvm import relax

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.matmul import BatchIndex, MatmulShape, register_block
from rt3_tvm.transform.composites import is_real, static_shape
from rt3_tvm.transform.layouts import opaque_kernel


def legalize_matmul(cpu: CpuShape) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    """Return how a product is legalised for a CPU: matrices of numbers to our kernel, what it does not take as TVM does."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        shape = matmul_shape(*(static_shape(a) for a in call.args))
        if shape is None or not all(map(is_real, call.args)):
            return tvm.ir.Op.get("relax.matmul").get_attr("FLegalize")(builder, call)
        kernel = opaque_kernel("matmul", shape, register_block(shape, cpu))
        left = builder.emit(relax.op.reshape(call.args[0], (shape.left.count, shape.rows, shape.inner)))
        right = builder.emit(relax.op.reshape(call.args[1], (shape.right.count, shape.inner, shape.columns)))
        ty = relax.TensorType((shape.batch, shape.rows, shape.columns), shape.element.dtype)
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
