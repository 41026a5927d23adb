"""Element types and the feature-major layout, as values: what a kernel multiplies, and how its activations lie in memory."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx


@dataclass(frozen=True)
class ElementType:
    """What a kernel multiplies: the name that TVM, NumPy and PyTorch have for it, the short one in names of kernels, its size."""

    dtype: str
    short: str
    bytes: int

    def const(self, value: float) -> tirx.Expr:
        """Return a number of this type."""
        return tirx.const(value, self.dtype)

    @classmethod
    def of(cls, dtype: str) -> "ElementType":
        """Return the element type of that name; KeyError where kernels multiply no such numbers."""
        return ELEMENT_TYPES[str(dtype)]


FLOAT32 = ElementType("float32", "f32", 4)
FLOAT16 = ElementType("float16", "f16", 2)
INT8 = ElementType("int8", "i8", 1)
ELEMENT_TYPES = {element.dtype: element for element in (FLOAT32, FLOAT16, INT8)}
"""Element types by the name that TVM has for them."""

REAL = FLOAT32
"""What is computed in between kernels, and what models take and return: sums, residuals, norms, softmax, activations."""


@dataclass(frozen=True)
class FeatureMajor:
    """(tokens, features) as (token tiles, features / interleave, token tile, interleave).

    Parameters
    ----------
    token_tile
        Tokens of a tile; every sequence is padded to whole tiles of its own.
    interleave
        Features of one token that lie beside each other, for instructions that sum over them; 1 needs no axis.
    """

    element: ElementType = REAL
    token_tile: int = 16
    interleave: int = 1

    def tiles(self, length: int) -> int:
        """Return the token tiles that hold ``length`` tokens."""
        return -(-length // self.token_tile)

    def shape(self, tiles: int, features: int) -> tuple[int, ...]:
        """Return the shape of some tiles."""
        assert features % self.interleave == 0, f"{features} features in groups of {self.interleave}"
        inner = (self.interleave,) if self.interleave > 1 else ()
        return tiles, features // self.interleave, self.token_tile, *inner

    def pack(self, array: npt.NDArray) -> npt.NDArray:
        """Return a (batch, length, features) array in this layout, padded with zeros."""
        batch, length, features = array.shape
        tiles = self.tiles(length)
        padded = np.zeros((batch, tiles * self.token_tile, features), self.element.dtype)
        padded[:, :length] = array
        split = padded.reshape(batch * tiles, self.token_tile, features // self.interleave, self.interleave)
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(self.shape(batch * tiles, features))

    def unpack(self, tiled: npt.NDArray, batch: int, length: int) -> npt.NDArray:
        """Return what lies in this layout as (batch, length, features)."""
        features = tiled.shape[1] * self.interleave
        split = tiled.reshape(len(tiled), tiled.shape[1], self.token_tile, self.interleave).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(split.reshape(batch, -1, features)[:, :length])


FEATURE_MAJOR = FeatureMajor()
"""What kernels work in. A tile of 16 tokens of float32 is 64 bytes: a cache line on every CPU we target."""
