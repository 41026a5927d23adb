"""What a row of SCHEDULES says of a kernel family."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.examples import Example, Sizes


@dataclass(frozen=True)
class KernelFamily:
    """One row: everything that is asked of a family, by whoever asks.

    Parameters
    ----------
    summary
        What the kernel does.
    algorithm
        From the arguments that fix a kernel to its function, not yet scheduled; the lowerings call it.
    schedule
        From that function to the scheduled one for a core; phase 6 calls it.
    flops
        From the same arguments to the floating-point operations of one call, on padded tokens too and on kept weights only;
        0 where nothing is computed or counted.
    bytes
        From the function to the bytes that one call touches.
    example
        A call of the given sizes: what tests compare, and what `benchmarks/run.py families` times.
    reference
        From the arguments and the input arrays to the output arrays, in NumPy and float64.
    tolerance
        How far an output of the example may be from the reference.
    """

    summary: str
    algorithm: Callable[..., tirx.PrimFunc]
    schedule: Callable[[tirx.PrimFunc, CpuShape], tirx.PrimFunc]
    flops: Callable[..., float]
    example: Callable[[CpuShape, Sizes], Example]
    reference: Callable[..., list[np.ndarray]]
    bytes: Callable[[tirx.PrimFunc], int] = lambda func: sum(map(buffer_bytes, func.params))
    tolerance: float = 1e-5


def buffer_bytes(buffer: Any) -> int:
    """Return the size of a parameter."""
    return prod(int(extent) for extent in buffer.ty.shape) * np.dtype(str(buffer.ty.dtype)).itemsize


def rows_looked_up(func: tirx.PrimFunc) -> int:
    """Return the bytes of a look-up: its result, and as many read from the table, of which the rest is not touched."""
    return 2 * buffer_bytes(func.params[-1])
