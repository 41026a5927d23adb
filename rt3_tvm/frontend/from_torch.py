"""torch.export -> Relax: one module per shape, parameters as inputs, attention kept as one operator."""

from dataclasses import dataclass

import torch
from tvm import IRModule
from tvm.relax.frontend.torch import from_exported_program

from rt3_tvm import model as models
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import export, outputs_of, padding_shows, parameter_names
from rt3_tvm.frontend.converters import CONVERTERS


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
