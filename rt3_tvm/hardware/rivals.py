"""Dense rivals on this machine, one row each: PyTorch always, ONNX Runtime where it is installed (extra ``bench``)."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rt3_tvm import model as models
from rt3_tvm.errors import Rt3Error, choices

Call = Callable[[], Any]


@dataclass(frozen=True)
class Rival:
    """A dense implementation: the packages it needs and how it makes a call of a linear layer or of a model."""

    packages: tuple[str, ...]
    linear: Callable[[np.ndarray, np.ndarray, np.ndarray, int], Call]
    model: Callable[[torch.nn.Module, dict[str, np.ndarray], int], Call]

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [p for p in self.packages if importlib.util.find_spec(p) is None]


def _torch_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int) -> Call:
    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(a) for a in (x, weight, bias)]

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return torch.nn.functional.linear(*tensors)

    return call


def _torch_model(model: torch.nn.Module, inputs: dict[str, np.ndarray], threads: int) -> Call:
    torch.set_num_threads(threads)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def call() -> Any:
        with torch.inference_mode():
            return model(**tensors)

    return call


def _session(serialised: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])


def _onnxruntime_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int) -> Call:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], weight.shape[0]])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = _session(model.SerializeToString(), threads)
    return lambda: session.run(None, {"x": x})


def _onnxruntime_model(model: torch.nn.Module, inputs: dict[str, np.ndarray], threads: int) -> Call:
    form = models.ExportForm(model)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad(), models.quiet():
        program = torch.onnx.export(form, (), kwargs=tensors, dynamo=True, verbose=False)
    assert program is not None  # only without dynamo
    session = _session(program.model_proto.SerializeToString(), threads)
    known = {i.name for i in session.get_inputs()}
    feed = {name: value for name, value in inputs.items() if name in known}
    return lambda: session.run(None, feed)


RIVALS: dict[str, Rival] = {
    "torch": Rival(("torch",), _torch_linear, _torch_model),
    "onnxruntime": Rival(("onnxruntime", "onnx", "onnxscript"), _onnxruntime_linear, _onnxruntime_model),
}


def installed_rivals(names: list[str] | None = None) -> dict[str, Rival]:
    """Return the rivals that can run here; one that was asked for by name must."""
    if names is None:
        return {name: rival for name, rival in RIVALS.items() if not rival.missing}
    for name in names:
        if name not in RIVALS:
            raise Rt3Error(f"unknown rival '{name}': choose from {choices(RIVALS)}")
        if RIVALS[name].missing:
            raise Rt3Error(f"rival '{name}' needs {', '.join(RIVALS[name].missing)}: pip install 'rt3-tvm[bench]'")
    return {name: RIVALS[name] for name in names}
