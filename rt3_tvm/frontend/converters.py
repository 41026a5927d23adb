"""ATen -> Relax where TVM's importer has no conversion, a wrong one, or one that hides what an operator is."""

import math
from collections.abc import Callable
from typing import Any

import torch
from tvm import relax

from rt3_tvm.errors import Rt3Error
from rt3_tvm.frontend.convolutions import convolution
from rt3_tvm.frontend.shapes import shape_of


def _dtype(node: torch.fx.Node) -> str:
    """Return the type of a node's elements as TVM calls it."""
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _astype(x: relax.Expr, node: torch.fx.Node, importer: Any) -> relax.Expr:
    """Return a tensor in the type of a node's result."""
    dtype = _dtype(node)
    return x if str(x.ty.dtype) == dtype else importer.block_builder.emit(relax.op.astype(x, dtype))


def _attention(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert scaled_dot_product_attention on (batch, heads, length, dim) to one Relax operator; masks are additive."""
    emit = importer.block_builder.emit
    query, key, value = (importer.env[a] for a in node.args[:3])
    arguments = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | node.kwargs
    if arguments.get("dropout_p"):
        raise Rt3Error(f"{node.name}: attention with dropout is not supported")
    key, value = (_repeated_heads(t, int(query.ty.shape[1]), emit) for t in (key, value))
    mask = arguments.get("attn_mask")
    bias = importer.env[mask] if mask is not None else None
    swapped = [emit(relax.op.permute_dims(t, [0, 2, 1, 3])) for t in (query, key, value)]
    result = relax.op.nn.attention(
        *swapped, bias, scale=arguments.get("scale"), causal_mask="TopLeft" if arguments.get("is_causal") else None
    )
    return emit(relax.op.permute_dims(emit(result), [0, 2, 1, 3]))


def _repeated_heads(t: relax.Expr, heads: int, emit: Any) -> relax.Expr:
    """Return keys or values (batch, heads of their own, length, dim) once for each head of the queries that shares them."""
    batch, own, length, dim = shape_of(t)
    if own == heads:
        return t
    spread = emit(relax.op.broadcast_to(emit(relax.op.expand_dims(t, 2)), (batch, own, heads // own, length, dim)))
    return emit(relax.op.reshape(spread, (batch, heads, length, dim)))


def _embedding(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert a look-up of rows; ids are clipped, where TVM's own conversion reads out of bounds."""
    table, ids = (importer.env[a] for a in node.args[:2])
    emit = importer.block_builder.emit
    shape = shape_of(ids)
    flat = emit(relax.op.reshape(emit(relax.op.astype(ids, "int32")), (math.prod(shape),)))
    rows = emit(relax.op.take(table, flat, axis=0, mode="clip"))
    return emit(relax.op.reshape(rows, (*shape, int(table.ty.shape[1]))))


def _select(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert x.select(axis, index) to a slice, which copies whole rows."""
    source = importer.env[node.args[0]]
    axis, index = (int(a) for a in node.args[1:3])  # type: ignore[arg-type]
    axis %= len(source.ty.shape)
    index %= int(source.ty.shape[axis])
    emit = importer.block_builder.emit
    row = emit(relax.op.strided_slice(source, axes=[axis], begin=[index], end=[index + 1]))
    return emit(relax.op.squeeze(row, axis=[axis]))


def _linear_stored_transposed(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert addmm(bias, x, weight (in, out)): a linear layer whose weight is stored the other way around.

    Export flattens the tokens before it and unflattens them behind it; where it does, the shape with a batch is kept.
    """
    bias, x, weight = node.args[:3]
    assert isinstance(x, torch.fx.Node)
    source = x.args[0] if x.target is torch.ops.aten.view.default else x
    assert isinstance(source, torch.fx.Node)
    unflattened = all(user.target is torch.ops.aten.view.default for user in node.users)
    if not (source.meta["val"].ndim == 3 and source.meta["val"].shape[-1] == x.meta["val"].shape[-1] and unflattened):
        source = x
    emit = importer.block_builder.emit
    return emit(relax.op.add(emit(relax.op.matmul(importer.env[source], importer.env[weight])), importer.env[bias]))


def _index(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert data[indices], some axes left whole, to one look-up along the indexed axes made one; ids count from the end too."""
    emit = importer.block_builder.emit
    data = importer.env[node.args[0]]
    indices = {axis: importer.env[n] for axis, n in enumerate(node.args[1]) if n is not None}  # type: ignore[arg-type]
    if any(str(i.ty.dtype) == "bool" for i in indices.values()):
        raise Rt3Error(f"{node.name}: what is selected by a condition has a size that depends on the data")
    axes, shape = list(indices), shape_of(data)
    whole = [axis for axis in range(len(shape)) if axis not in indices]
    first = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0  # where the result's indexed axes stand
    order = [*whole[:first], *axes, *whole[first:]]
    if order != sorted(order):
        data = emit(relax.op.permute_dims(data, order))
    flat, left = None, [shape[axis] for axis in whole]
    for axis, index in indices.items():
        size, zero = (relax.const(n, str(index.ty.dtype)) for n in (shape[axis], 0))
        position = emit(relax.op.where(emit(relax.op.less(index, zero)), emit(relax.op.add(index, size)), index))
        flat = position if flat is None else emit(relax.op.add(emit(relax.op.multiply(flat, size)), position))
    rows = math.prod(shape[axis] for axis in axes)
    table = emit(relax.op.reshape(data, (*left[:first], rows, *left[first:])))
    return emit(relax.op.take(table, flat, axis=first, mode="clip"))


def _index_select(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert a look-up along one axis; ids are clipped, as an embedding's are: TVM's own conversion warns of them instead."""
    source, axis, index = node.args
    assert isinstance(axis, int)
    return importer.block_builder.emit(relax.op.take(importer.env[source], importer.env[index], axis=axis, mode="clip"))


def _cat(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert cat; tensors without elements, of whatever rank, add nothing (a cache that is empty)."""
    tensors = [importer.env[n] for n in node.args[0]]  # type: ignore[union-attr]
    whole = [t for t in tensors if math.prod(shape_of(t))]
    axis = int(node.args[1]) if len(node.args) > 1 else int(node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    return whole[0] if len(whole) == 1 else importer.block_builder.emit(relax.op.concat(whole, axis=axis))


def _reduction(operator: Callable[..., relax.Call]) -> Callable[[torch.fx.Node, Any], relax.Var]:
    """Return how a reduction is converted, in the type of its result: truths are counted, not joined."""

    def convert(node: torch.fx.Node, importer: Any) -> relax.Var:
        arguments = dict(zip(("x", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
        axes, kept = arguments.get("dim") or None, bool(arguments.get("keepdim"))
        source = _astype(importer.env[node.args[0]], node, importer)
        return importer.block_builder.emit(operator(source, axes, kept))

    return convert


def _cumsum(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert a cumulative sum, in the type of its result, as a reduction is."""
    source = _astype(importer.env[node.args[0]], node, importer)
    return importer.block_builder.emit(relax.op.cumsum(source, axis=int(node.args[1])))  # type: ignore[arg-type]


def _divided(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert a division that is rounded, in the type of its result; TVM takes a divisor to be int32."""
    dtype, emit = _dtype(node), importer.block_builder.emit
    a, b = (
        _astype(importer.env[n], node, importer) if isinstance(n, torch.fx.Node) else relax.const(n, dtype)
        for n in node.args[:2]
    )
    mode = node.kwargs.get("rounding_mode")
    if mode == "floor":
        return emit(relax.op.floor_divide(a, b))
    quotient = emit(relax.op.divide(a, b))  # of integers it is cut off already
    return quotient if mode is None or not dtype.startswith("float") else emit(relax.op.trunc(quotient))


CONVERTERS = {
    "cumsum.default": _cumsum,
    "div.Tensor_mode": _divided,
    "amax.default": _reduction(relax.op.max),
    "amin.default": _reduction(relax.op.min),
    "sum.dim_IntList": _reduction(relax.op.sum),
    "sum.default": _reduction(relax.op.sum),
    "convolution.default": convolution,
    "cat.default": _cat,
    "addmm.default": _linear_stored_transposed,
    "scaled_dot_product_attention.default": _attention,
    "embedding.default": _embedding,
    "index.Tensor": _index,
    "index_select.default": _index_select,
    "select.int": _select,
}
