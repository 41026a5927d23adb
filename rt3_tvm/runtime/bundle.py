"""The Python face of a bundle: ctypes over its own C API."""

import _ctypes
import ctypes
import json
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, Self

import numpy as np
import numpy.typing as npt

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.runtime.arrays import Described, as_input, empty_outputs, zeros
from rt3_tvm.runtime.c_api import (
    BELOW_RANGE,
    DTYPES,
    AutoOptions,
    CLevelInfo,
    TensorInfo,
    check,
    load_library,
    tensors_of,
)
from rt3_tvm.runtime.check import metadata_of, open_bundle
from rt3_tvm.runtime.checksums import check_content


@dataclass(frozen=True)
class LevelInfo:
    """A level: its frequency in Hz, its deadline in s (0: none), the kept part of the pruned matrices."""

    frequency_hz: float
    deadline_s: float
    density: float


def load(path: str | Path) -> "Bundle":
    """Open a bundle.

    Raises
    ------
    Rt3Error
        Missing, truncated, damaged, foreign, for another machine, or for a CPU with more features than this one has.
    """
    return Bundle(Path(path))


class Bundle:
    """A pruned Transformer that switches its level.

    Call it with NumPy arrays by name: tokens int64 or int32 of shape (batch, length), images float32; it returns float32 arrays
    by name.
    Switching is safe from any thread; calls queue. :meth:`close` waits for them; what comes later is an error, and so is a copy.

    Examples
    --------
    >>> m = load("bundle.so")  # doctest: +SKIP
    >>> m.set_frequency(1.0e9)  # doctest: +SKIP
    >>> m(input_ids=ids)["last_hidden_state"]  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self._handle: ctypes.c_void_p | None = None
        self.path = path
        with open_bundle(path) as file:
            metadata_of(file, path)
            check_content(file, path)
            self._library = load_library(file, path)
        handle = ctypes.c_void_p()
        try:
            self._check(self._library.rt3_open(ctypes.byref(handle)))
        except (Rt3Error, JobError) as error:
            _ctypes.dlclose(self._library._handle)
            raise type(error)(f"'{path}': {error}") from error
        self._handle = handle
        self._renew_locks()
        _opened.add(self)
        self._inputs = self._describe(self._library.rt3_input_count, self._library.rt3_input)
        self._outputs = self._describe(self._library.rt3_output_count, self._library.rt3_output)

    def _renew_locks(self) -> None:
        """Make the locks; in a child that was forked again, since threads that held them are not there."""
        self._queue = threading.Lock()
        self._users = 0
        self._state = threading.Condition()

    def _check(self, status: int) -> int:
        return check(self._library, status)

    @contextmanager
    def _open(self) -> Iterator[ctypes.c_void_p]:
        """Give the handle to one call, and keep it open that long."""
        with self._state:
            if self._handle is None:
                raise Rt3Error(f"'{self.path}' is closed: load it again")
            handle = self._handle
            self._users += 1
        try:
            yield handle
        finally:
            with self._state:
                self._users -= 1
                self._state.notify_all()

    def _describe(self, count: Any, describe: Any) -> tuple[Described, ...]:
        infos = []
        for i in range(count(self._handle)):
            info = TensorInfo()
            self._check(describe(self._handle, i, ctypes.byref(info)))
            infos.append(Described(info.name.decode(), DTYPES[info.dtype], tuple(info.axes[: info.rank])))
        return tuple(infos)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the bundle says of itself: model, device, levels, kernels, versions."""
        with self._open():
            return json.loads(self._library.rt3_metadata())

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs; the first is required."""
        return tuple(i.name for i in self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(o.name for o in self._outputs)

    @property
    def levels(self) -> tuple[LevelInfo, ...]:
        """The levels, densest first."""
        infos = []
        with self._open() as handle:
            for i in range(self._library.rt3_level_count(handle)):
                info = CLevelInfo()
                self._check(self._library.rt3_level(handle, i, ctypes.byref(info)))
                infos.append(LevelInfo(info.frequency_hz, info.deadline_s, info.density))
        return tuple(infos)

    @property
    def level(self) -> int:
        """The current level."""
        with self._open() as handle:
            return int(self._library.rt3_current_level(handle))

    @property
    def max_batch(self) -> int:
        """Largest batch."""
        with self._open() as handle:
            return int(self._library.rt3_max_batch(handle))

    @property
    def max_length(self) -> int:
        """Largest length in tokens."""
        with self._open() as handle:
            return int(self._library.rt3_max_length(handle))

    @property
    def threads(self) -> int:
        """Threads of a run."""
        with self._open() as handle:
            return int(self._library.rt3_threads(handle))

    @property
    def max_threads(self) -> int:
        """Most threads that the bundle was compiled for."""
        with self._open() as handle:
            return int(self._library.rt3_max_threads(handle))

    def set_threads(self, threads: int) -> None:
        """Run on this many threads, 1 to ``max_threads``."""
        with self._open() as handle, self._queue:
            self._check(self._library.rt3_set_threads(handle, threads))

    def set_level(self, level: int) -> None:
        """Take a level, 0 the densest."""
        with self._open() as handle:
            self._check(self._library.rt3_set_level(handle, level))

    def set_frequency(self, hz: float) -> bool:
        """Take the densest level whose deadline holds at ``hz``; False when it is below all, and no deadline is sure."""
        with self._open() as handle:
            return self._check(self._library.rt3_set_frequency(handle, hz)) != BELOW_RANGE

    def set_auto(
        self,
        sysfs_root: str | Path = "/sys",
        policy: int = 0,
        *,
        dwell_s: float = 0.0,
        poll_s: float = 0.0,
        hysteresis: float = 0.0,
    ) -> None:
        """Follow a cpufreq policy from now on; zeros take the defaults of ``rt3.h``."""
        options = AutoOptions(os.fsencode(sysfs_root), policy, dwell_s, poll_s, hysteresis)
        with self._open() as handle, self._queue:
            self._check(self._library.rt3_set_auto(handle, ctypes.byref(options)))

    def __call__(self, **inputs: npt.ArrayLike) -> dict[str, npt.NDArray[np.float32]]:
        """Run the current level.

        Parameters
        ----------
        **inputs
            int64 or int32 arrays of shape (batch, length), all of one shape; float32 arrays of the model's shape for images.
            Without ``attention_mask`` every token is real.

        Returns
        -------
        dict
            float32 arrays of the shapes that the model gives for this batch and length.
        """
        arrays = {name: as_input(self._inputs, name, value) for name, value in inputs.items()}
        if not arrays:
            raise Rt3Error(f"no inputs: give {', '.join(self.inputs)}")
        outputs = empty_outputs(self._outputs, arrays)
        self._run(arrays, outputs)
        return outputs

    def profile(self, **inputs: npt.ArrayLike) -> list[float]:
        """Run the current level once and return the seconds of each kernel call, in the order of the metadata's steps."""
        arrays = {name: as_input(self._inputs, name, value) for name, value in inputs.items()}
        count = ctypes.c_int32(max(len(v["steps"]) for v in self.metadata["variants"]))
        seconds = (ctypes.c_double * count.value)()
        ins, outs = tensors_of(arrays), tensors_of({})
        with self._open() as handle, self._queue:
            self._check(self._library.rt3_profile(handle, ins, len(arrays), outs, 0, seconds, ctypes.byref(count)))
        return list(seconds[: count.value])

    def zeros(self, length: int) -> dict[str, np.ndarray]:
        """Return the first input, all zeros, for the largest batch: enough to run the bundle."""
        return zeros(self._inputs[0], self.max_batch, length)

    def _run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        ins, outs = tensors_of(inputs), tensors_of(outputs)
        with self._open() as handle, self._queue:
            self._check(self._library.rt3_run(handle, ins, len(inputs), outs, len(outputs)))

    def close(self) -> None:
        """Free the handle once the calls that have begun are done; a second call does nothing."""
        if self._handle is None:
            return
        with self._state:
            handle, self._handle = self._handle, None
            if handle is None:  # another thread was first
                return
            self._state.wait_for(lambda: self._users == 0)
        self._library.rt3_close(handle)
        _ctypes.dlclose(self._library._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> Never:
        """Refuse to be copied or pickled: two objects would free one handle."""
        raise TypeError("a Bundle cannot be copied or pickled: load the file again")


_opened: "weakref.WeakSet[Bundle]" = weakref.WeakSet()


def _renew_locks() -> None:
    for bundle in _opened:
        bundle._renew_locks()


os.register_at_fork(after_in_child=_renew_locks)
