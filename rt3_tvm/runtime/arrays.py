"""The arrays that a bundle takes and gives, on this machine or on a device behind RPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.runtime.c_api import AXIS_BATCH, AXIS_LENGTH

FREE = {AXIS_BATCH: "batch", AXIS_LENGTH: "length"}
"""Axes whose size a call chooses."""


@dataclass(frozen=True)
class Described:
    """An input or output: its name, type, and axes, of which those in ``FREE`` a call chooses."""

    name: str
    dtype: np.dtype
    axes: tuple[int, ...]

    def shape(self, batch: int, length: int) -> list[int]:
        """Return the shape in a call of a batch and a length."""
        return [{AXIS_BATCH: batch, AXIS_LENGTH: length}.get(a, a) for a in self.axes]


def as_input(known: Sequence[Described], name: str, value: npt.ArrayLike) -> np.ndarray:
    """Return the array of an input.

    Raises
    ------
    Rt3Error
        There is no such input, or it has another type or rank.
    """
    array = np.ascontiguousarray(value)
    info = next((i for i in known if i.name == name), None)
    if info is None:
        raise Rt3Error(f"no input '{name}': choose from {choices(i.name for i in known)}")
    wanted = (info.dtype,) if info.dtype.kind == "f" else (np.dtype(np.int64), np.dtype(np.int32))
    if array.dtype not in wanted:
        raise Rt3Error(f"input '{name}': dtype {array.dtype}, expected {' or '.join(map(str, wanted))}")
    if array.ndim != len(info.axes):
        axes = ", ".join(FREE.get(a, str(a)) for a in info.axes)
        raise Rt3Error(f"input '{name}': rank {array.ndim}, expected {len(info.axes)} ({axes})")
    return array


def empty_outputs(known: Sequence[Described], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return an array for each output of a call with some inputs: the first says how large it is."""
    batch, length = (*next(iter(inputs.values())).shape, 1)[:2]
    return {o.name: np.empty(o.shape(batch, length), o.dtype) for o in known}


def zeros(first: Described, batch: int, length: int) -> dict[str, np.ndarray]:
    """Return the first input, all zeros: enough to run a bundle."""
    return {first.name: np.zeros(first.shape(batch, length), first.dtype)}
