"""A bundle on a device behind TVM's RPC: uploaded, run and timed there by the entry points that every bundle has for tvm-ffi."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import tvm

from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime import arrays
from rt3_tvm.runtime.arrays import Described
from rt3_tvm.runtime.c_api import DTYPES
from rt3_tvm.runtime.check import check_bundle, read_metadata
from rt3_tvm.timing import Timing
from rt3_tvm.tune.session import Remote

SLOWEST_BYTES = 100e3
"""Bytes a second that an upload has at least: below, the device has vanished."""
RANK, DTYPE = -1, -2
"""What ``axis`` of a bundle also tells of a tensor."""
FUNCTIONS = ("open", "close", "set_level", "set_threads", "set_frequency", "run", "profile", "axis")


class RemoteBundle:
    """A bundle on a device; it is called as one on this machine is.

    Parameters
    ----------
    remote
        The session; closing it frees the bundle.
    path
        The bundle, here.

    Raises
    ------
    Rt3Error
        It is damaged, or for another machine or CPU than the device's.
    """

    def __init__(self, remote: Remote, path: Path) -> None:
        self.path, self.metadata = path, read_metadata(path)
        check_bundle(path, for_this_machine=False)
        self._remote, self._cpu = remote, remote.session.cpu(0)
        self._check_machine()
        self._module = self._upload()
        self._functions = {name: remote.ask(partial(self._function, name)) for name in FUNCTIONS}
        self._handle = self._ask("open", mine=False)
        names = (*self.metadata["inputs"], *self.metadata["outputs"])
        described = [self._describe(i, name) for i, name in enumerate(names)]
        count = len(self.metadata["inputs"])
        self._inputs, self._outputs = described[:count], described[count:]

    def _check_machine(self) -> None:
        """Refuse a bundle whose code the device cannot read: loading it would say less."""
        made = str(self.metadata["target"].get("mtriple", "")).split("-", 1)[0]
        made = "arm" if made.startswith("armv") else made
        there = self._remote.board().get("machine")
        if there is not None and made != there:
            raise Rt3Error(f"'{self.path}' is for {made}, {self._remote.name} is {there}: compile it for that device")

    def _upload(self) -> Any:
        session, name, image = self._remote.session, f"{uuid4().hex}.so", bytearray(self.path.read_bytes())
        self._remote.ask(lambda: session.upload(image, name), len(image) / SLOWEST_BYTES + 60.0)
        module = self._remote.ask(lambda: session.load_module(name))
        self._remote.ask(lambda: session.remove(name))  # what is loaded stays
        return module

    def _function(self, name: str) -> Any:
        try:
            return self._module[name]
        except AttributeError as error:
            raise Rt3Error(f"'{self.path}' has no entry '{name}' for RPC: compile it again") from error

    def _ask(self, name: str, *arguments: Any, mine: bool = True) -> Any:
        """Return what an entry point gives; ``mine``: its first argument is the handle."""
        handle = (self._handle,) if mine else ()
        return self._remote.ask(lambda: self._functions[name](*handle, *arguments))

    def _describe(self, i: int, name: str) -> Described:
        axis = partial(self._ask, "axis", i, mine=False)
        return Described(name, DTYPES[axis(DTYPE)], tuple(axis(d) for d in range(axis(RANK))))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs; the first is required."""
        return tuple(self.metadata["inputs"])

    @property
    def max_length(self) -> int:
        """Largest length in tokens."""
        return int(max(self.metadata["lengths"]))

    @property
    def densities(self) -> tuple[float, ...]:
        """Kept part of the pruned matrices at each level."""
        return tuple(float(row["density"]) for row in self.metadata["levels"])

    def set_level(self, level: int) -> None:
        """Take a level, 0 the densest."""
        self._ask("set_level", level)

    def set_threads(self, threads: int) -> None:
        """Run on this many threads."""
        self._ask("set_threads", threads)

    def set_frequency(self, hz: float) -> bool:
        """Take the densest level whose deadline holds at ``hz``; False when it is below all, and no deadline is sure."""
        return not self._ask("set_frequency", float(hz))

    def zeros(self, length: int) -> dict[str, np.ndarray]:
        """Return the first input, all zeros, for the largest batch: enough to run the bundle."""
        return arrays.zeros(self._inputs[0], int(self.metadata["batch"]), length)

    def __call__(self, **inputs: npt.ArrayLike) -> dict[str, npt.NDArray[np.float32]]:
        """Run the current level on the device; inputs and outputs are those of :class:`~rt3_tvm.runtime.Bundle`."""
        prepared = self.prepared(**inputs)
        prepared.run()
        return prepared.outputs()

    def prepared(self, **inputs: npt.ArrayLike) -> "Prepared":
        """Return calls with some inputs, which are taken to the device once."""
        given = {name: arrays.as_input(self._inputs, name, value) for name, value in inputs.items()}
        if not given:
            raise Rt3Error(f"no inputs: give {', '.join(self.inputs)}")
        return Prepared(self, given)

    def tensors(self, values: Sequence[np.ndarray | None]) -> list[Any]:
        """Return arrays as tensors of the device."""
        return [v if v is None else self._remote.ask(partial(tvm.runtime.tensor, v, self._cpu)) for v in values]

    def timer(self, number: int) -> Any:
        """Return the function that runs the bundle so many times on the device and tells the seconds of one."""
        return self._remote.ask(lambda: self._module.time_evaluator("run", self._cpu, number=number, repeat=1))

    def close(self) -> None:
        """Free the handle; the library stays with the session."""
        self._ask("close")


class Prepared:
    """Calls of a bundle with inputs and outputs that lie on the device."""

    def __init__(self, bundle: RemoteBundle, inputs: Mapping[str, np.ndarray]) -> None:
        self._bundle = bundle
        self._empty = arrays.empty_outputs(bundle._outputs, inputs)
        self._inputs = bundle.tensors([inputs.get(name) for name in bundle.inputs])
        self._outputs = bundle.tensors(list(self._empty.values()))
        self._steps = max(len(v["steps"]) for v in bundle.metadata["variants"])

    def run(self) -> None:
        """Run the current level."""
        self._bundle._ask("run", *self._inputs, *self._outputs)

    def outputs(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return what the last run gave."""
        ask = self._bundle._remote.ask
        return {name: ask(tensor.numpy) for name, tensor in zip(self._empty, self._outputs, strict=True)}

    def seconds(self, number: int) -> float:
        """Return the s of one of so many runs of the current level."""
        evaluate, bundle = self._bundle.timer(number), self._bundle
        return float(bundle._remote.ask(lambda: evaluate(bundle._handle, *self._inputs, *self._outputs)).mean)

    def timing(self, repeat: int, number: int) -> Timing:
        """Return the ms of a run: so many rounds of so many runs, after one to warm up."""
        self.run()
        return Timing.of([1e3 * self.seconds(number) for _ in range(repeat)])

    def profile(self) -> list[float]:
        """Run the current level once and return the s of each kernel call, in the order of the metadata's steps."""
        (seconds,) = self._bundle.tensors([np.zeros(self._steps)])
        steps = self._bundle._ask("profile", *self._inputs, seconds)
        return [float(s) for s in self._bundle._remote.ask(seconds.numpy)[:steps]]
