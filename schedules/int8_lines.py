"""How activations of int8 lie: a line is one feature of as many tokens as a vector has bytes, in the order that zips want.

Dot products sum four columns of one token that lie beside each other. Kept columns are any columns, so that the kernel zips
four lines: bytes, then pairs of bytes. x86 zips within 128 bits, and so does the quantiser narrow four vectors of float32: what
the one mixes up the other puts right. After the zips a vector is four columns of the tokens of one vector of float32.

Where columns are kept in quads the quantiser writes such vectors, in the order of a table of quads, and nothing is zipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, ElementType

LANE_BYTES = 16
"""Zips and narrowing stay within so many bytes."""
COLUMNS = 4
"""Columns that a dot product sums."""
LANE_WORDS = LANE_BYTES // COLUMNS
"""Of four weights each: a vector of them, on cores that multiply by a lane of it."""
PARTS = 4
"""Vectors of float32 that are as many numbers as a vector of int8."""

SERVED_ATTR = "rt3.served"
"""PrimFunc attribute: how many tokens of each tile are computed, from the first on; the others become zeros."""
QUADS_ATTR = "rt3.quads"
"""PrimFunc attribute of a quantiser that writes quads."""
PLACES_ATTR = "rt3.places"
"""PrimFunc attribute of a quantiser that writes features as a table says: its places. The table stands before its results."""


@dataclass(frozen=True)
class Lines:
    """Activations (token tiles, features, 16) as int8: (lines, features, tokens of a line), the last line filled up.

    ``unsigned``: each number lies as x + 128, for instructions that take it so. ``quads``: in the place of the lines of four
    features are four vectors, each of all four features of the tokens of one part; as many bytes at the same place.
    """

    tokens: int
    unsigned: bool = False
    quads: bool = False

    @property
    def lanes(self) -> int:
        """Tokens of a vector of float32."""
        return self.tokens // PARTS

    @property
    def tiles(self) -> int:
        """Token tiles of a line."""
        return self.tokens // FEATURE_MAJOR.token_tile

    def count(self, tiles: int) -> int:
        """Return the lines of a feature that hold some token tiles."""
        return -(-tiles // self.tiles)

    def shape(self, tiles: int, features: int) -> tuple[int, int, int]:
        """Return the shape of some token tiles."""
        return self.count(tiles), features, self.tokens

    def served(self, length: int) -> int:
        """Return the tokens of a tile that are computed where each sequence has ``length``: whole vectors; the rest is zeros."""
        return min(FEATURE_MAJOR.token_tile, -(-length // self.lanes) * self.lanes)

    def parts(self, tiles: int, served: int) -> list[int]:
        """Return which vectors of a line hold tokens, where ``served`` of each of some token tiles are computed."""
        count = min(PARTS, tiles * FEATURE_MAJOR.token_tile // self.lanes)
        return [part for part in range(count) if part * self.lanes % FEATURE_MAJOR.token_tile < served]

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Which token of its line each byte is."""
        lane, part, token = np.unravel_index(np.arange(self.tokens), (self.tokens // LANE_BYTES, PARTS, 4))
        return part * self.lanes + lane * 4 + token

    def pack(self, tiles: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Return numbers (token tiles, features, 16) as they lie.

        What fills up the last line is as in the last tile, or zeros where there is no other line.
        """
        count = self.count(len(tiles))
        filled = tiles[np.minimum(np.arange(count * self.tiles), len(tiles) - 1)]
        if count == 1:
            filled[len(tiles) :] = 0
        lines = filled.reshape(count, self.tiles, tiles.shape[1], -1).transpose(0, 2, 1, 3)
        lines = lines.reshape(self.shape(len(tiles), tiles.shape[1]))
        lines = self._in_quads(lines) if self.quads else lines[:, :, self.order]
        return np.ascontiguousarray(lines ^ np.int8(-128) if self.unsigned else lines)

    def _in_quads(self, lines: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Return lines of features as vectors of four of them."""
        split = lines.reshape(len(lines), -1, COLUMNS, PARTS, self.lanes)
        return split.transpose(0, 1, 3, 4, 2).reshape(lines.shape)

    def _out_of_quads(self, vectors: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Return what ``_in_quads`` took."""
        split = vectors.reshape(len(vectors), -1, PARTS, self.lanes, COLUMNS)
        return split.transpose(0, 1, 4, 2, 3).reshape(vectors.shape)

    def unpack(self, lines: npt.NDArray[np.int8], tiles: int) -> npt.NDArray[np.int8]:
        """Return what lies so as (token tiles, features, 16)."""
        signed = lines ^ np.int8(-128) if self.unsigned else lines
        numbers = self._out_of_quads(signed) if self.quads else signed[:, :, np.argsort(self.order)]
        split = numbers.reshape(len(lines), lines.shape[1], self.tiles, -1).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(split.reshape(-1, lines.shape[1], FEATURE_MAJOR.token_tile)[:tiles])


@dataclass(frozen=True)
class Quantised:
    """Activations of int8 for an instruction, a row of DOT_PRODUCTS, and how they lie; ``served``: tokens of each tile."""

    dot: str
    lines: Lines
    served: int = FEATURE_MAJOR.token_tile

    @property
    def element(self) -> ElementType:
        """What they are."""
        return INT8

    @property
    def facts(self) -> list[Any]:
        """What an attribute says of it: instruction, tokens of a line, if unsigned, tokens that are served, if in quads."""
        return [self.dot, self.lines.tokens, self.lines.unsigned, self.served, self.lines.quads]

    @classmethod
    def of(cls, facts: Sequence[Any]) -> Self:
        """Return what :attr:`facts` says."""
        dot, tokens, unsigned, *others = facts  # records of before have fewer
        served, quads = [*map(int, others), *(FEATURE_MAJOR.token_tile, 0)[len(others) :]]
        return cls(str(dot), Lines(int(tokens), bool(unsigned), bool(quads)), served)


def served_tokens(tiles: npt.NDArray[Any], served: int) -> npt.NDArray[Any]:
    """Return tiles (tiles, features, 16) of whose tokens the first ``served`` are left, zeros in the place of others."""
    return np.where(np.arange(tiles.shape[2]) < served, tiles, np.zeros_like(tiles))
