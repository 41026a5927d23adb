"""Convolutions -> Relax, over one axis or several: linear layers on the windows that a kernel sees."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tvm import relax

from rt3_tvm.errors import Rt3Error
from rt3_tvm.frontend.shapes import shape_of

Emit = Callable[[relax.Expr], relax.Var]


def convolution(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert a convolution of (batch, channels, *extents) to a product of its windows with its kernel."""
    emit, env = importer.block_builder.emit, importer.env
    arguments: tuple[Any, ...] = node.args
    source, kernel, bias = (env.get(n) for n in arguments[:3])
    stride, padding, dilation, transposed, _, groups = arguments[3:9]
    if transposed:
        raise Rt3Error(f"{node.name}: transposed convolutions are not supported")
    source = _padded(source, padding, emit)
    outputs, of_group, *window = shape_of(kernel)
    if of_group == 1 and outputs == groups > 1 and len(window) <= 2:
        return _biased(_each_channel(source, kernel, stride, dilation, emit), bias, emit)
    windows, counts = _windows(source, window, stride, dilation, emit)
    if groups == 1:
        product = _product(windows, kernel, bias, emit)
    else:
        product = _biased(_product_of_groups(windows, kernel, groups, emit), bias, emit)
    return emit(relax.op.reshape(product, (shape_of(source)[0], outputs, *counts)))


def _padded(source: relax.Expr, padding: Sequence[int], emit: Emit) -> relax.Expr:
    """Return a source with zeros before and behind each of its extents."""
    if not any(padding):
        return source
    return emit(relax.op.nn.pad(source, [0, 0, 0, 0, *(int(p) for p in padding for _ in "<>")]))


def _count(extent: int, window: int, stride: int, dilation: int) -> int:
    """Return how many windows lie in an extent."""
    return (extent - dilation * (window - 1) - 1) // stride + 1


def _windows(
    source: relax.Expr, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int], emit: Emit
) -> tuple[relax.Expr, list[int]]:
    """Return the windows, (batch, windows, channels * elements), and how many there are along each axis."""
    batch, channels, *extents = shape_of(source)
    counts = [_count(*sizes) for sizes in zip(extents, window, stride, dilation, strict=True)]
    cut, axis = source, 2  # one axis becomes two: which window, which element of it
    for count, width, step, apart in zip(counts, window, stride, dilation, strict=True):
        cut = _windows_along(cut, axis, count, (width, step, apart), emit)
        axis += 2
    order = [0, *range(2, axis, 2), 1, *range(3, axis, 2)]
    rows = emit(relax.op.permute_dims(cut, order))
    return emit(relax.op.reshape(rows, (batch, math.prod(counts), channels * math.prod(window)))), counts


def _windows_along(source: relax.Expr, axis: int, count: int, sizes: tuple[int, int, int], emit: Emit) -> relax.Expr:
    """Return a tensor whose axis is two, windows and their elements; windows side by side are cut without a copy."""
    width, step, apart = sizes
    shape = shape_of(source)
    if step == width and (apart == 1 or width == 1):
        if shape[axis] != count * width:  # what is left at the end fills no window
            source = emit(relax.op.strided_slice(source, [axis], [0], [count * width], [1]))
        return emit(relax.op.reshape(source, (*shape[:axis], count, width, *shape[axis + 1 :])))
    source = emit(
        relax.op.nn.pad(source, [0, 0] * len(shape))
    )  # computed once, not again for every window that sees it
    places = np.arange(count, dtype=np.int32)[:, None] * step + np.arange(width, dtype=np.int32) * apart
    return emit(relax.op.take(source, relax.const(places), axis=axis, mode="clip"))


def _product(windows: relax.Expr, kernel: relax.Expr, bias: relax.Expr | None, emit: Emit) -> relax.Var:
    """Return (batch, outputs, windows): a linear layer on the windows as tokens."""
    outputs, *rest = shape_of(kernel)
    matrix = emit(relax.op.permute_dims(emit(relax.op.reshape(kernel, (outputs, math.prod(rest))))))
    out = emit(relax.op.matmul(windows, matrix))
    return emit(relax.op.permute_dims(out if bias is None else emit(relax.op.add(out, bias)), [0, 2, 1]))


def _product_of_groups(windows: relax.Expr, kernel: relax.Expr, groups: int, emit: Emit) -> relax.Var:
    """Return (batch, outputs, windows): one small matrix for each group of channels."""
    outputs, *rest = shape_of(kernel)
    batch, count, _ = shape_of(windows)
    rows = emit(relax.op.reshape(windows, (batch * count, groups, math.prod(rest))))
    matrices = emit(relax.op.reshape(kernel, (groups, outputs // groups, math.prod(rest))))
    product = emit(relax.op.matmul(matrices, emit(relax.op.permute_dims(rows, [1, 2, 0]))))  # (groups, outputs, tokens)
    return emit(relax.op.permute_dims(emit(relax.op.reshape(product, (outputs, batch, count))), [1, 0, 2]))


def _each_channel(
    source: relax.Expr, kernel: relax.Expr, stride: Sequence[int], dilation: Sequence[int], emit: Emit
) -> relax.Var:
    """Return a convolution of each channel with a kernel of its own: an operator, for it makes no matrix worth a kernel."""
    batch, channels, *extents = shape_of(source)
    window = shape_of(kernel)[2:]
    counts = [_count(*sizes) for sizes in zip(extents, window, stride, dilation, strict=True)]
    lone = [1] * (2 - len(window))  # a sequence is an image of one row
    out = relax.op.nn.conv2d(
        emit(relax.op.reshape(source, (batch, channels, *lone, *extents))),
        emit(relax.op.reshape(kernel, (channels, 1, *lone, *window))),
        strides=[*lone, *stride],
        dilation=[*lone, *dilation],
        groups=channels,
    )
    return emit(relax.op.reshape(emit(out), (batch, channels, *counts)))


def _biased(x: relax.Var, bias: relax.Expr | None, emit: Emit) -> relax.Var:
    """Return (batch, channels, ...) with a number added to each channel."""
    if bias is None:
        return x
    rest = [1] * (len(shape_of(x)) - 2)
    return emit(relax.op.add(x, emit(relax.op.reshape(bias, (shape_of(bias)[0], *rest)))))
