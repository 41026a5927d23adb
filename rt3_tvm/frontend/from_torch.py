"""torch.export -> Relax: one module per shape, parameters as inputs, attention kept as one operator."""

from dataclasses import dataclass

import torch
from tvm import IRModule
from tvm.relax.frontend.torch import from_exported_program

from rt3_tvm import model as models
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import export, parameter_names
from rt3_tvm.export.bfloat16 import only_rounds
from rt3_tvm.export.padding import Interface
from rt3_tvm.frontend.converters import CONVERTERS


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A Relax module for one shape.

    ``parameters`` maps the names of ``main``'s parameters to the model's weight names. ``interface``:
    what the model takes and gives.
    """

    mod: IRModule
    batch: int
    length: int
    parameters: dict[str, str]
    interface: Interface

    @property
    def inputs(self) -> tuple[models.InputSpec, ...]:
        """Inputs of the graph, in order."""
        return self.interface.inputs

    @property
    def outputs(self) -> tuple[models.OutputSpec, ...]:
        """Outputs of the graph, in order."""
        return self.interface.outputs


def import_model(model: torch.nn.Module, batch: int, length: int, interface: Interface | None = None) -> ImportedModel:
    """Return the Relax module of a model for inputs of shape (batch, length); its interface may be known already."""
    longest = models.max_length(model)
    if length > longest:
        raise Rt3Error(f"length {length} exceeds the {longest} positions of the model")
    interface = interface or Interface.of(model)
    program = export(model, batch, length, interface.inputs)
    _check_graph(program)
    try:
        mod = from_exported_program(
            program,
            keep_params_as_input=True,
            run_ep_decomposition=False,
            custom_convert_map=CONVERTERS,
        )
    except (AssertionError, TypeError, ValueError) as error:  # how TVM 0.27 says what it cannot import
        raise Rt3Error(f"TVM cannot import this model: {str(error).splitlines()[0]}") from error
    mod["main"] = mod["main"].without_attr("params")
    return ImportedModel(mod, batch, length, parameter_names(program), interface)


NUMBERS = (torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _check_graph(program: torch.export.ExportedProgram) -> None:
    """Refuse tensors that depend on a number that the data gives, and half precision or complex numbers that nothing rewrote.

    A number that is only asserted, as XLM does of its lengths, changes nothing.
    """
    for node in program.graph.nodes:
        if _is_symbolic(node) and any(
            user.meta.get("val") is not None and not _is_symbolic(user) for user in node.users
        ):
            raise Rt3Error(
                f"TVM cannot import this model: it computes with {node.name}, a number that depends on the data"
            )
        dtype = getattr(node.meta.get("val"), "dtype", torch.float32)
        if dtype not in NUMBERS and not only_rounds(node):
            raise Rt3Error(f"TVM cannot import this model: {node.name} is of {str(dtype).removeprefix('torch.')}")


def _is_symbolic(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)
