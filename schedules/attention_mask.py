"""What is known of a mask at compile time: which tiles of keys each tile of queries sees, and whether a band says it all."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rt3_tvm.schedules.layout import FEATURE_MAJOR

TILE = FEATURE_MAJOR.token_tile
"""Queries and keys of a tile: what a mask hides is known by whole tiles."""

HIDDEN = -1e30
"""What is added to a score below this hides a key."""


@dataclass(frozen=True)
class StaticMask:
    """The constant part of a mask over ``queries`` and ``keys``.

    Parameters
    ----------
    left, right
        A query sees no key that is more than this before, or after, it; None for no limit.
    tiles
        For each tile of queries the first tile of keys that one of them sees, and the one behind the last.
    """

    tiles: tuple[tuple[int, int], ...]
    left: int | None = None
    right: int | None = None

    @classmethod
    def none(cls, queries: int, keys: int) -> "StaticMask":
        """Return the mask that hides nothing."""
        return cls(((0, -(-keys // TILE)),) * -(-queries // TILE))

    @classmethod
    def band(cls, queries: int, keys: int, left: int | None, right: int | None) -> "StaticMask":
        """Return the mask that shows a band around the diagonal; every query must see a key."""
        return cls(_visible_tiles(_band(queries, keys, left, right)), left, right)

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> "StaticMask":
        """Return the mask that ``to_attrs`` wrote."""
        tiles = tuple((int(first), int(last)) for first, last in attrs["tiles"])
        return cls(tiles, *(int(attrs[side]) if side in attrs else None for side in ("left", "right")))

    def to_attrs(self) -> dict[str, Any]:
        """Return the mask as attributes of a function."""
        sides = {side: value for side, value in (("left", self.left), ("right", self.right)) if value is not None}
        return {"tiles": [list(t) for t in self.tiles], **sides}

    def shown(self, queries: int, keys: int) -> np.ndarray:
        """Return which keys are inside of the band, (queries, keys)."""
        return _band(queries, keys, self.left, self.right)

    def blocks(self, count: int) -> list[tuple[int, int]]:
        """Return the first tile of keys, and the one behind the last, that one of ``count`` tiles of queries sees."""
        starts = range(0, len(self.tiles), count)
        return [
            (min(first for first, _ in block), max(last for _, last in block))
            for block in (self.tiles[start : start + count] for start in starts)
        ]

    def widest(self, count: int) -> int:
        """Return the most tiles of keys that ``count`` tiles of queries see."""
        return max(last - first for first, last in self.blocks(count))

    @cached_property
    def pairs(self) -> int:
        """Tiles of queries times the tiles of keys that they see."""
        return sum(last - first for first, last in self.tiles)


def analyse(bias: np.ndarray) -> tuple[StaticMask, bool]:
    """Return what a constant (.., queries, keys) that is added to scores hides, and whether that is all it does.

    Tiles that one batch or head sees count for all. Nothing is skipped where a query sees no key: what its softmax makes of
    them depends on all of them.
    """
    queries, keys = bias.shape[-2:]
    shown = bias > HIDDEN
    visible = np.logical_or.reduce(shown.reshape(-1, queries, keys))
    if not np.logical_or.reduce(visible, axis=1).all():
        return StaticMask.none(queries, keys), False
    q, k = np.nonzero(visible)
    reach = int((q - k).max()), int((k - q).max())
    # A limit that hides nothing is no limit.
    left, right = (None if r >= n - 1 else r for r, n in zip(reach, (queries, keys), strict=True))
    whole = bool((shown == _band(queries, keys, left, right)).all() and (bias[shown] == 0).all())
    tiles = _visible_tiles(visible)
    return (StaticMask(tiles, left, right) if whole else StaticMask(tiles)), whole


def _band(queries: int, keys: int, left: int | None, right: int | None) -> np.ndarray:
    ahead = np.arange(keys) - np.arange(queries)[:, None]
    return (ahead <= (keys if right is None else right)) & (ahead >= -(queries if left is None else left))


def _visible_tiles(visible: np.ndarray) -> tuple[tuple[int, int], ...]:
    ranges = []
    for start in range(0, len(visible), TILE):
        seen = np.nonzero(visible[start : start + TILE].any(axis=0))[0]
        ranges.append((int(seen[0]) // TILE, int(seen[-1]) // TILE + 1))
    return tuple(ranges)
