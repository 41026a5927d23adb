"""The weight store of a bundle: every distinct array once, in one blob that has a section for each level."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.pattern import SparseMatrix, as_matrix
from rt3_tvm.runtime.check import SHARED
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_packing import PackedInt8, pack_int8, smoothing, static_factors
from rt3_tvm.schedules.layout import ElementType
from rt3_tvm.schedules.packing import PackedLinear, pack_linear, pack_rows
from rt3_tvm.transform.context import QUADS, UNPRUNED, WeightRef

WEIGHTS_FILE = "weights.bin"
"""Name of the blob in a folder where a bundle is linked."""
ALIGNMENT = 64
WEIGHTS_ALIGNMENT = 16384
"""The largest page of the systems we target, so that each section begins on a page of its own."""


@dataclass(frozen=True)
class WeightSection:
    """What only one level reads, or all that levels share (``SHARED``): where it begins in the blob, and its bytes."""

    level: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class WeightLayout:
    """Where everything lies in the blob: its sections in order, and the offsets of the store's arrays by number."""

    sections: tuple[WeightSection, ...]
    offsets: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self.sections[-1].offset + self.sections[-1].bytes


@dataclass
class WeightStore:
    """Collects arrays, and which levels use them; equal bytes are stored once."""

    checkpoint: Checkpoint
    calibration: Mapping[str, np.ndarray] = field(default_factory=dict)
    arrays: list[np.ndarray] = field(default_factory=list)
    _users: list[set[int]] = field(default_factory=list)
    _numbers: dict[bytes, int] = field(default_factory=dict)
    _packed: dict[WeightRef, PackedLinear | PackedInt8] = field(default_factory=dict)

    def add(self, array: np.ndarray, level: int) -> int:
        """Return the number of an array that a level uses; ``UNPRUNED``: that no level changes."""
        array = np.ascontiguousarray(array)
        key = hashlib.sha256(str(array.dtype).encode() + array.tobytes()).digest()
        if key not in self._numbers:
            self._numbers[key] = len(self.arrays)
            self.arrays.append(array)
            self._users.append(set())
        self._users[self._numbers[key]].add(level)
        return self._numbers[key]

    def resolve(self, ref: WeightRef) -> int:
        """Return the number of the array that a parameter of ``main`` holds."""
        if ref.kind == "raw":
            weight = self.checkpoint.weights[ref.weight]
            return self.add(weight if ref.level == UNPRUNED else self._matrix(ref).masked(weight), ref.level)
        if ref.kind == "table":
            return self.add(self.table(ref.weight), ref.level)
        if ref.kind == "factors":
            return self.add(static_factors(self.calibration[ref.weight]), ref.level)
        return self.add(getattr(self._linear(ref), ref.kind), ref.level)

    def lay_out(self) -> WeightLayout:
        """Return where everything lies once all variants are planned: what levels share, then each level's own."""
        homes = [SHARED if UNPRUNED in users or len(users) > 1 else min(users) for users in self._users]
        offsets, sections, end = [0] * len(self.arrays), [], 0
        for level in (SHARED, *range(len(self.checkpoint.levels))):
            start = end = _aligned(end, WEIGHTS_ALIGNMENT)
            for number in (n for n, home in enumerate(homes) if home == level):
                offsets[number] = end
                end += _aligned(self.arrays[number].nbytes, ALIGNMENT)
            sections.append(WeightSection(level, start, end - start))
        return WeightLayout(tuple(sections), tuple(offsets))

    def _matrix(self, ref: WeightRef) -> SparseMatrix:
        return self.checkpoint.levels[ref.level].matrices[ref.weight]

    def _linear(self, ref: WeightRef) -> PackedLinear | PackedInt8:
        whole = replace(ref, kind="values")  # all kinds are packed together
        if whole not in self._packed:
            self._packed[whole] = self._pack(ref)
        return self._packed[whole]

    def multiplied(self, ref: WeightRef) -> np.ndarray:
        """Return the (rows, cols) that a linear layer multiplies by, masked where its level prunes it."""
        weight = as_matrix(self.checkpoint.weights[ref.weight], ref.transposed)
        return weight if ref.level == UNPRUNED else weight * self._matrix(ref).mask()

    def table(self, name: str) -> np.ndarray:
        """Return the order in which the columns of a matrix lie, which is the same at all levels."""
        table = self.checkpoint.levels[0].matrices[name].backbone.table
        assert table is not None
        return table.astype(np.int32)

    def smoothed(self, ref: WeightRef) -> np.ndarray:
        """Return what a layer of int8 multiplies smoothed features by, before it is quantised."""
        weight = self.multiplied(ref)
        return weight * smoothing(self.calibration[ref.smoothed]) if ref.smoothed else weight

    def _pack(self, ref: WeightRef) -> PackedLinear | PackedInt8:
        bias, element = self.checkpoint.weights[ref.bias] if ref.bias else None, ElementType.of(ref.element)
        weight = self.multiplied(ref)
        matrix = None if ref.level == UNPRUNED else self._matrix(ref)
        if ref.packing is None:
            assert matrix is not None
            return pack_rows(weight, *matrix.group_columns())
        columns = np.arange(weight.shape[1], dtype=np.int32)[None]
        valid = np.ones_like(columns, dtype=np.bool_)
        if ref.form == QUADS:
            assert matrix is not None
            weight, (places, valid) = matrix.backbone.placed(self.smoothed(ref)), matrix.group_places()
            return pack_int8(weight, places, valid, bias, ref.packing, DOT_PRODUCTS[ref.dot], quads=True)
        if matrix is not None and not ref.dense:
            columns, valid = matrix.group_columns()
        if ref.dot:
            return pack_int8(self.smoothed(ref), columns, valid, bias, ref.packing, DOT_PRODUCTS[ref.dot])
        return pack_linear(weight, columns, valid, bias, ref.packing, element)

    def write(self, path: Path, layout: WeightLayout) -> None:
        """Write the blob; zeros lie between arrays and between sections."""
        with path.open("wb") as file:
            for array, offset in zip(self.arrays, layout.offsets, strict=True):
                file.seek(offset)
                file.write(array.data)
            file.truncate(layout.size)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
