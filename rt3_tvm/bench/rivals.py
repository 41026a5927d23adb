"""Dense rivals on this machine, one row each: PyTorch always, the others where they are installed (their extra says what)."""

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rt3_tvm import model as models
from rt3_tvm.bench import executorch
from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.export import ExportForm

Call = Callable[[], Any]


@dataclass(frozen=True)
class Rival:
    """A dense implementation: the packages it needs, of which extra, and how it makes a call of a linear layer or of a model."""

    packages: tuple[str, ...]
    linear: Callable[[np.ndarray, np.ndarray, np.ndarray, int], Call]
    model: Callable[[torch.nn.Module, dict[str, np.ndarray], int], Call]
    by_default: bool = True
    extra: str = "bench"

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


def _onnx_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], weight.shape[0]])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def onnx_model(model: torch.nn.Module, inputs: dict[str, np.ndarray], int8: bool = False) -> Any:
    """Return a model as ONNX, for inputs of these shapes; ``int8`` with dynamic quantisation."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    form = ExportForm(model)
    with torch.no_grad(), models.quiet():
        program = torch.onnx.export(form, (), kwargs=tensors, dynamo=True, verbose=False)
    assert program is not None  # only without dynamo
    return _quantised(program.model_proto) if int8 else program.model_proto


def _onnxruntime_call(proto: Any, inputs: dict[str, np.ndarray], threads: int) -> Call:
    session = _session(proto.SerializeToString(), threads)
    known = {i.name for i in session.get_inputs()}
    feed = {name: value for name, value in inputs.items() if name in known}
    return lambda: session.run(None, feed)


def _onnxruntime_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int) -> Call:
    return _onnxruntime_call(_onnx_linear(x, weight, bias), {"x": x}, threads)


def _onnxruntime_model(model: torch.nn.Module, inputs: dict[str, np.ndarray], threads: int) -> Call:
    return _onnxruntime_call(onnx_model(model, inputs), inputs, threads)


def _quantised(proto: Any) -> Any:
    """Return a model whose matrix products run on int8: weights quantised ahead, activations at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, models.quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        del proto.graph.value_info[:]  # shapes that exporter and quantiser infer disagree in their names
        onnx.save(proto, source)
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        return onnx.load(target)


def _onnxruntime_int8_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int) -> Call:
    return _onnxruntime_call(_quantised(_onnx_linear(x, weight, bias)), {"x": x}, threads)


def _onnxruntime_int8_model(model: torch.nn.Module, inputs: dict[str, np.ndarray], threads: int) -> Call:
    return _onnxruntime_call(onnx_model(model, inputs, int8=True), inputs, threads)


def _openvino_call(proto: Any, inputs: dict[str, np.ndarray], threads: int) -> Call:
    # Its telemetry asks the network; where the package of it is not to be had OpenVINO does without.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        # Without the precision it would compute in bfloat16 where the CPU can.
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(path), "CPU", config)
    known = {name for port in compiled.inputs for name in port.names}
    feed = {name: value for name, value in inputs.items() if name in known}
    request = compiled.create_infer_request()
    return lambda: request.infer(feed)


def _openvino_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int) -> Call:
    return _openvino_call(_onnx_linear(x, weight, bias), {"x": x}, threads)


def _openvino_model(model: torch.nn.Module, inputs: dict[str, np.ndarray], threads: int) -> Call:
    return _openvino_call(onnx_model(model, inputs), inputs, threads)


def _executorch(int8: bool) -> Rival:
    linear, model = partial(executorch.linear, int8=int8), partial(executorch.model, int8=int8)
    return Rival(("executorch", "torchao"), linear, model, by_default=False, extra="executorch")


ONNX = ("onnx", "onnxscript")
RIVALS: dict[str, Rival] = {
    "torch": Rival(("torch",), _torch_linear, _torch_model),
    "onnxruntime": Rival(("onnxruntime", *ONNX), _onnxruntime_linear, _onnxruntime_model),
    "openvino": Rival(("openvino", *ONNX), _openvino_linear, _openvino_model),
    # Dense but not float32: only on request.
    "onnxruntime-int8": Rival(
        ("onnxruntime", *ONNX), _onnxruntime_int8_linear, _onnxruntime_int8_model, by_default=False
    ),
    # XNNPACK is made for phones: only on request.
    "executorch": _executorch(int8=False),
    "executorch-int8": _executorch(int8=True),
}


def installed_rivals(names: list[str] | None = None) -> dict[str, Rival]:
    """Return the rivals that can run here; one that was asked for by name must."""
    if names is None:
        return {name: rival for name, rival in RIVALS.items() if rival.by_default and not rival.missing}
    for name in names:
        if name not in RIVALS:
            raise Rt3Error(f"unknown rival '{name}': choose from {choices(RIVALS)}")
        if RIVALS[name].missing:
            needed, extra = ", ".join(RIVALS[name].missing), RIVALS[name].extra
            raise Rt3Error(f"rival '{name}' needs {needed}: pip install 'rt3-tvm[{extra}]'")
    return {name: RIVALS[name] for name in names}
