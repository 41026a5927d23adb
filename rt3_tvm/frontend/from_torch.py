"""torch.export -> Relax: one module per shape, parameters as inputs, attention kept as one operator."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from tvm import IRModule, relax
from tvm.relax.frontend.torch import from_exported_program

from rt3_tvm import model as models
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import export, outputs_of, padding_shows, parameter_names


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A Relax module for one shape.

    ``parameters`` maps the names of ``main``'s parameters to the model's weight names. ``exact_length``: the model's outputs
    depend on padding, so the module is for inputs of just this length.
    """

    mod: IRModule
    batch: int
    length: int
    inputs: tuple[models.InputSpec, ...]
    outputs: tuple[models.OutputSpec, ...]
    parameters: dict[str, str]
    exact_length: bool


def _attention(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert scaled_dot_product_attention on (batch, heads, length, dim) to one Relax operator; masks are additive."""
    emit = importer.block_builder.emit
    query, key, value = (importer.env[a] for a in node.args[:3])
    arguments = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | node.kwargs
    if arguments.get("dropout_p") or arguments.get("enable_gqa"):
        raise Rt3Error(f"{node.name}: attention with dropout or grouped queries is not supported yet")
    mask = arguments.get("attn_mask")
    bias = importer.env[mask] if mask is not None else None
    swapped = [emit(relax.op.permute_dims(t, [0, 2, 1, 3])) for t in (query, key, value)]
    result = relax.op.nn.attention(
        *swapped, bias, scale=arguments.get("scale"), causal_mask="TopLeft" if arguments.get("is_causal") else None
    )
    return emit(relax.op.permute_dims(emit(result), [0, 2, 1, 3]))


def _embedding(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert a look-up of rows; ids are clipped, where TVM's own conversion reads out of bounds."""
    table, ids = (importer.env[a] for a in node.args[:2])
    emit = importer.block_builder.emit
    shape = [int(d) for d in ids.ty.shape]
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


def _patches(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Convert a convolution whose windows do not overlap: a linear layer on patches, as vision Transformers embed them."""
    x, weight, bias, *geometry = node.args[:9]
    image, kernel = importer.env[x], importer.env[weight]
    batch, channels, height, width = (int(d) for d in image.ty.shape)
    outputs, _, *window = (int(d) for d in kernel.ty.shape)
    wanted: list[Any] = [window, [0, 0], [1, 1], False, [0, 0], 1]  # stride, padding, dilation, transposed, .., groups
    if geometry != wanted or height % window[0] or width % window[1]:
        raise Rt3Error(f"{node.name}: of convolutions only whole patches (stride = kernel, no padding) are supported")
    rows, cols, features = height // window[0], width // window[1], channels * window[0] * window[1]
    emit = importer.block_builder.emit
    cut = emit(relax.op.reshape(image, (batch, channels, rows, window[0], cols, window[1])))
    patches = emit(relax.op.permute_dims(cut, [0, 2, 4, 1, 3, 5]))
    patches = emit(relax.op.reshape(patches, (batch, rows * cols, features)))
    matrix = emit(relax.op.permute_dims(emit(relax.op.reshape(kernel, (outputs, features)))))
    out = emit(relax.op.matmul(patches, matrix))
    out = out if bias is None else emit(relax.op.add(out, importer.env[bias]))
    return emit(relax.op.reshape(emit(relax.op.permute_dims(out, [0, 2, 1])), (batch, outputs, rows, cols)))


CONVERTERS = {
    "convolution.default": _patches,
    "addmm.default": _linear_stored_transposed,
    "scaled_dot_product_attention.default": _attention,
    "embedding.default": _embedding,
    "select.int": _select,
}


def import_model(model: torch.nn.Module, batch: int, length: int) -> ImportedModel:
    """Return the Relax module of a model for inputs of shape (batch, length)."""
    longest = models.max_length(model)
    if length > longest:
        raise Rt3Error(f"length {length} exceeds the {longest} positions of the model")
    inputs = models.inputs_of(model)
    program = export(model, batch, length)
    try:
        mod = from_exported_program(
            program,
            keep_params_as_input=True,
            run_ep_decomposition=False,
            custom_convert_map=CONVERTERS,
        )
    except (AssertionError, ValueError) as error:  # how TVM 0.27 reports an operator or a shape that it cannot import
        raise Rt3Error(f"TVM cannot import this model: {str(error).splitlines()[0]}") from error
    mod["main"] = mod["main"].without_attr("params")
    outputs = outputs_of(model, inputs)
    exact = padding_shows(model, inputs, outputs)
    return ImportedModel(mod, batch, length, inputs, outputs, parameter_names(program), exact)
