"""Running the kernels of a variant one by one on this machine, to look at what each of them writes."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tvm import relax

from rt3_tvm.codegen.kernels import Kernel
from rt3_tvm.codegen.link import run_compiler
from rt3_tvm.codegen.plan import ALIGNMENT, Place, Step, VariantPlan
from rt3_tvm.model import InputSpec, OutputSpec


def link_kernels(compiler: list[str], folder: Path, kernels: str) -> ctypes.CDLL:
    """Return the kernels of an object file of this machine as a library."""
    run_compiler(compiler, ["-shared", "-o", "kernels.so", kernels, "-lm"], folder)
    return ctypes.CDLL(str(folder / "kernels.so"))


class Walk:
    """The memory of a variant while its steps run: a workspace and the weights, as the C runtime has them."""

    def __init__(self, library: ctypes.CDLL, kernels: list[Kernel], plan: VariantPlan, weights: Path) -> None:
        self.library, self.kernels, self.plan = library, kernels, plan
        memory = np.zeros(plan.workspace_bytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self.workspace = memory[start : start + plan.workspace_bytes]
        self.weights = np.memmap(weights, np.uint8, "r")

    def run(self, specs: tuple[InputSpec, ...], inputs: dict[str, np.ndarray]) -> Iterator[Step]:
        """Yield each step when it has run; what it has written stands until the next."""
        for spec, offset in zip(specs, self.plan.inputs, strict=True):
            self.write(Place("workspace", offset), inputs[spec.name])
        for step in self.plan.steps:
            kernel = self.kernels[step.kernel]
            pointers = [ctypes.c_void_p(self._address(place)) for place in step.args]
            getattr(self.library, kernel.symbol)(*pointers, ctypes.c_int32(0), ctypes.c_int32(kernel.tasks))
            yield step

    def read(self, place: Place, ty: relax.TensorType) -> np.ndarray:
        """Return a copy of a tensor."""
        shape, dtype = [int(d) for d in ty.shape], np.dtype(str(ty.dtype))
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = self.weights if place.segment == "weights" else self.workspace
        return memory[place.offset : place.offset + size].view(dtype).reshape(shape).copy()

    def outputs(self, specs: tuple[OutputSpec, ...], batch: int, length: int) -> dict[str, np.ndarray]:
        """Return the outputs of a variant for a batch and a length, by name, when all steps have run."""
        found, sizes = {}, {"batch": batch, "length": length}
        for spec, offset in zip(specs, self.plan.outputs, strict=True):
            shape = [sizes.get(str(axis)) or int(axis) for axis in spec.axes]
            found[spec.name] = self.read(Place("workspace", offset), relax.TensorType(shape, spec.dtype))
        return found

    def write(self, place: Place, value: np.ndarray) -> None:
        """Put a tensor into the workspace."""
        flat = np.ascontiguousarray(value).view(np.uint8).reshape(-1)
        self.workspace[place.offset : place.offset + flat.size] = flat

    def _address(self, place: Place) -> int:
        return (self.weights if place.segment == "weights" else self.workspace).ctypes.data + place.offset
