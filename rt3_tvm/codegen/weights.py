"""The weight store of a bundle: every distinct array once, at an aligned offset of one blob."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.pattern import SparseMatrix
from rt3_tvm.schedules.packing import PackedLinear, pack_linear, pack_rows
from rt3_tvm.transform.context import UNPRUNED, WeightRef

ALIGNMENT = 64


@dataclass
class WeightStore:
    """Collects arrays; equal bytes are stored once."""

    checkpoint: Checkpoint
    arrays: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    _offsets: dict[bytes, int] = field(default_factory=dict)
    _packed: dict[tuple, PackedLinear] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> int:
        """Return the offset of an array in the blob."""
        array = np.ascontiguousarray(array)
        key = hashlib.sha256(str(array.dtype).encode() + array.tobytes()).digest()
        if key not in self._offsets:
            self._offsets[key] = self.size
            self.arrays.append(array)
            self.size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return self._offsets[key]

    def resolve(self, ref: WeightRef) -> int:
        """Return the offset of what a parameter of ``main`` holds."""
        if ref.kind == "raw":
            weight = self.checkpoint.weights[ref.weight]
            return self.add(weight if ref.level == UNPRUNED else self._matrix(ref).masked(weight))
        return self.add(getattr(self._linear(ref), ref.kind))

    def _matrix(self, ref: WeightRef) -> SparseMatrix:
        return self.checkpoint.levels[ref.level].matrices[ref.weight]

    def _linear(self, ref: WeightRef) -> PackedLinear:
        key = (ref.weight, ref.bias, ref.level, ref.packing, ref.dense, ref.transposed)
        if key not in self._packed:
            self._packed[key] = self._pack(ref)
        return self._packed[key]

    def _pack(self, ref: WeightRef) -> PackedLinear:
        weight = self.checkpoint.weights[ref.weight]
        weight = weight.T if ref.transposed else weight.reshape(weight.shape[0], -1)
        bias = self.checkpoint.weights[ref.bias] if ref.bias else None
        matrix = None if ref.level == UNPRUNED else self._matrix(ref)
        if ref.packing is None:
            assert matrix is not None
            return pack_rows(weight, *matrix.group_columns())
        if matrix is not None and not ref.dense:
            return pack_linear(weight, *matrix.group_columns(), bias, ref.packing)
        if matrix is not None:
            weight = weight * matrix.mask()  # both are (rows, cols) here
        columns = np.arange(weight.shape[1], dtype=np.int32)[None]
        return pack_linear(weight, columns, np.ones_like(columns, dtype=np.bool_), bias, ref.packing)

    def write(self, path: Path) -> None:
        """Write the blob."""
        with path.open("wb") as file:
            for array in self.arrays:
                file.write(array.data)
                file.write(b"\0" * (-array.nbytes % ALIGNMENT))
