"""Weights of a linear layer in int8, in the order in which the kernels of int8 read them, with a scale for each row."""

from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

from rt3_tvm.schedules.dot_products import DotProduct
from rt3_tvm.schedules.int8_lines import COLUMNS, LANE_WORDS
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.schedules.linear_decisions import LinearPacking
from rt3_tvm.schedules.packing import OFFSET_UNIT, offset_dtype

LARGEST = 127.0
"""Of a quantised activation: -128 has no counterpart."""
LEAST = 2.0**-100
"""What the largest magnitude of activations is at least: their steps are 0 then, and 1 / scale is a number."""
ZERO_POINT = 128
"""What activations of unsigned dot products lie above their number."""


@dataclass(frozen=True, eq=False)
class PackedInt8:
    """Arrays that the kernel takes: see ``int8_linear`` for their shapes."""

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.uint16] | npt.NDArray[np.int32]
    bias: npt.NDArray
    scales: npt.NDArray
    starts: npt.NDArray[np.int32]


def row_scales(weight: npt.NDArray, largest: int) -> npt.NDArray:
    """Return what one step of each row is worth: symmetric, the largest weight is the largest number; 1 for a row of zeros."""
    most = np.abs(weight).max(axis=1)
    return np.where(most > 0, most / largest, 1.0).astype(REAL.dtype)


def quantised(weight: npt.NDArray, scales: npt.NDArray, largest: int) -> npt.NDArray[np.int8]:
    """Return the rows in steps, rounded to nearest, ties to even."""
    steps = np.rint(weight / scales[:, None].astype(np.float64))
    return np.clip(steps, -largest, largest).astype(np.int8)


SMALLEST_FEATURE = 1e-3
"""What a feature's largest magnitude is at least, as a part of that of all: one that was never seen has no factor of its own."""


def smoothing(largest: npt.NDArray) -> npt.NDArray:
    """Return what each feature is divided by before it is quantised, by its largest magnitude: (cols,), the largest gets 1.

    Half of what features differ by goes to the weights, on a logarithmic scale.
    """
    most = max(float(largest.max(initial=0.0)), LEAST)
    return np.sqrt(np.maximum(largest / most, SMALLEST_FEATURE)).astype(REAL.dtype)


def static_factors(largest: npt.NDArray) -> npt.NDArray:
    """Return what a static quantiser multiplies each feature by, and behind them what one step is worth: (cols + 1,)."""
    divisors = smoothing(largest)
    step = max(float((largest / divisors).max(initial=0.0)), LEAST) / LARGEST
    return np.append(1.0 / (divisors * step), step).astype(REAL.dtype)


def int8_kept(kept: int, dot: DotProduct, packing: LinearPacking) -> int:
    """Return the kept columns rounded up to whole sums of int32, and to whole vectors of weights where iterations have such."""
    words = packing.rows * dot.quads
    step = COLUMNS * dot.quads * gcd(packing.unroll, LANE_WORDS // gcd(LANE_WORDS, words))
    return -(-kept // step) * step


def pack_int8(
    weight: npt.NDArray,
    columns: npt.NDArray[np.int32],
    valid: npt.NDArray[np.bool_],
    bias: npt.NDArray | None,
    packing: LinearPacking,
    dot: DotProduct,
    scales: npt.NDArray | None = None,
    quads: bool = False,
) -> PackedInt8:
    """Gather the kept weights of a (rows, cols) matrix, as ``pack_linear`` does.

    Parameters
    ----------
    quads
        Whether columns come in fours, each from a multiple of four on: offsets are then those of quads, one for each.
    scales
        Of each row, as large as the largest kept weight wants at least; levels that have the same share their numbers. By default
        those of the matrix.
    """
    rows, (groups, kept) = weight.shape[0], columns.shape
    scales = row_scales(weight, dot.largest) if scales is None else scales
    pad = ((0, 0), (0, int8_kept(kept, dot, packing) - kept))
    columns, valid = np.pad(np.where(valid, columns, 0), pad), np.pad(valid, pad)
    steps = quantised(weight, scales, dot.largest).reshape(groups, rows // groups, -1)
    values = np.take_along_axis(steps, columns[:, None, :].astype(np.int64), axis=2) * valid[:, None, :]
    sums = values.reshape(rows, -1).sum(axis=1, dtype=np.int32)
    blocks = rows // packing.rows, packing.rows
    words = values.reshape(*blocks, -1, COLUMNS).transpose(0, 2, 1, 3)
    return PackedInt8(
        np.ascontiguousarray(words, np.int8).view(np.int32)[..., 0],
        np.ascontiguousarray(columns[:, :: COLUMNS if quads else 1] * OFFSET_UNIT, offset_dtype(weight.shape[1])),
        (np.zeros(rows, REAL.dtype) if bias is None else bias).reshape(blocks),
        scales.reshape(blocks),
        (sums * (-ZERO_POINT if dot.unsigned else 0)).astype(np.int32).reshape(blocks),
    )
