"""ExecuTorch as a rival: PyTorch's own runtime for phones, its programs on XNNPACK, in float32 or in dynamic int8."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from rt3_tvm import model as models


class _Positional(nn.Module):
    """The first output of a model that takes its inputs by position, as an ExecuTorch program does."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *args: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, args, strict=True)))[0]


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int, int8: bool) -> Callable[[], Any]:
    """Return a call of a linear layer."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return _call(layer, (torch.from_numpy(x),), threads, int8)


def model(net: nn.Module, inputs: dict[str, np.ndarray], threads: int, int8: bool) -> Callable[[], Any]:
    """Return a call of a model, without its mask: ExecuTorch's quantiser breaks what is indexed to make one."""
    masks = {spec.name for spec in models.inputs_of(net) if spec.mask}
    given = {name: torch.from_numpy(value) for name, value in inputs.items() if name not in masks}
    return _call(_Positional(net, list(given)).eval(), tuple(given.values()), threads, int8)


def _call(net: nn.Module, example: tuple[torch.Tensor, ...], threads: int, int8: bool) -> Callable[[], Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    with torch.no_grad(), models.quiet():
        program = torch.export.export(net, example)
        if int8:
            program = torch.export.export(_quantised(program, example), example)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    portable_lib._unsafe_reset_threadpool(threads)  # nothing else in its Python says how many
    loaded = Runtime.get().load_program(lowered.buffer)
    method = loaded.load_method("forward")
    assert method is not None
    run: Callable[[], Any] = partial(method.execute, list(example))
    run.program = loaded  # type: ignore[attr-defined]  # a method does not keep its program
    return run


def _quantised(program: torch.export.ExportedProgram, example: tuple[torch.Tensor, ...]) -> nn.Module:
    """Return a program whose linear layers run on int8: weights by row, activations as they come."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(*example)
    converted: nn.Module = convert_pt2e(prepared)
    return converted
