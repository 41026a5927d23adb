"""Weights of a linear layer in the order in which ``pattern_linear`` reads them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL, ElementType
from rt3_tvm.schedules.linear_decisions import LinearPacking, padded_kept

UINT16_VALUES = 1 << 16
OFFSET_UNIT = FEATURE_MAJOR.token_tile
"""What the number of a column is multiplied by in a table: where its line begins in a tile of the real layout. Tables are the
same for all layouts, so that levels of different element types share them; a wider tile is one shift further."""


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """Arrays that the kernel takes: see ``linear_algorithm`` for their shapes."""

    values: npt.NDArray
    offsets: npt.NDArray[np.uint16] | npt.NDArray[np.int32]
    bias: npt.NDArray


def offset_dtype(cols: int) -> str:
    """Return the smallest type that holds where a column begins in a tile."""
    return column_dtype(cols * OFFSET_UNIT)


def pack_rows(
    weight: npt.NDArray,
    columns: npt.NDArray[np.int32],
    valid: npt.NDArray[np.bool_],
    element: ElementType = REAL,
) -> PackedLinear:
    """Gather the kept values of a table whose rows are looked up: values (rows, kept), columns (groups, kept)."""
    group = weight.shape[0] // len(columns)
    columns = np.where(valid, columns, 0)
    values = np.take_along_axis(weight, np.repeat(columns, group, axis=0).astype(np.int64), axis=1)
    values = values * np.repeat(valid, group, axis=0)
    small = columns.astype(column_dtype(weight.shape[1]))
    return PackedLinear(
        np.ascontiguousarray(values, dtype=element.dtype), np.ascontiguousarray(small), np.zeros(0, element.dtype)
    )


def column_dtype(cols: int) -> str:
    """Return the smallest type that holds a column."""
    return "uint16" if cols <= UINT16_VALUES else "int32"


def pack_linear(
    weight: npt.NDArray,
    columns: npt.NDArray[np.int32],
    valid: npt.NDArray[np.bool_],
    bias: npt.NDArray | None,
    packing: LinearPacking,
    element: ElementType = REAL,
) -> PackedLinear:
    """Gather the kept weights of a (rows, cols) matrix.

    Parameters
    ----------
    columns, valid
        (groups, kept): the columns that each group of rows / groups rows keeps. What is not valid, and what pads the last
        column block, multiplies column 0 by zero.
    element
        What the values are stored as; the bias is what sums are.
    """
    rows = weight.shape[0]
    groups, kept = columns.shape
    total = padded_kept(kept, packing)
    pad = ((0, 0), (0, total - kept))
    columns = np.pad(np.where(valid, columns, 0), pad)
    valid = np.pad(valid, pad)
    grouped = weight.reshape(groups, rows // groups, -1)
    values = np.take_along_axis(grouped, columns[:, None, :].astype(np.int64), axis=2) * valid[:, None, :]
    blocks, block_kept = packing.column_blocks, total // packing.column_blocks
    values = values.reshape(rows // packing.rows, packing.rows, blocks, block_kept).transpose(2, 0, 3, 1)
    offsets = (columns * OFFSET_UNIT).reshape(groups, blocks, block_kept).transpose(1, 0, 2)
    return PackedLinear(
        np.ascontiguousarray(values, dtype=element.dtype),
        np.ascontiguousarray(offsets, dtype=offset_dtype(weight.shape[1])),
        (np.zeros(rows, REAL.dtype) if bias is None else bias).reshape(-1, packing.rows),
    )
