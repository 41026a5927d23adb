"""Sizes of attention, and what becomes of a score before the softmax."""

from dataclasses import dataclass

from tvm import tirx

from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL, FeatureMajor
from rt3_tvm.schedules.vector_math import tanh

MASKED = -3.4e38
"""Score of the keys that a band hides and of those that only pad a tile."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of attention, and what becomes of a score q.k before the softmax: scaled, capped, biased, hidden.

    Parameters
    ----------
    batch, length, heads, dim
        Of the queries; ``dim`` is that of the keys too.
    scale
        Factor of the scores.
    mask
        What is hidden at compile time; None hides nothing.
    key_bias, score_bias
        (batch or 1, heads or 1) of what is added to all scores of a key, and to each score; None adds nothing.
    kv_heads, v_dim, keys
        Of keys and values where they differ from the queries': heads (a divisor), features of a value, length.
    soft_cap
        c of c * tanh(score / c), before the biases; 0 for none.
    """

    batch: int
    length: int
    heads: int
    dim: int
    scale: float
    mask: StaticMask | None = None
    key_bias: tuple[int, int] | None = None
    score_bias: tuple[int, int] | None = None
    kv_heads: int = 0
    v_dim: int = 0
    keys: int = 0
    soft_cap: float = 0.0
    layout: FeatureMajor = FEATURE_MAJOR

    def __post_init__(self) -> None:
        for name, default in (("kv_heads", self.heads), ("v_dim", self.dim), ("keys", self.length)):
            object.__setattr__(self, name, getattr(self, name) or default)
        if self.mask is None:
            object.__setattr__(self, "mask", StaticMask.none(self.length, self.keys))

    @property
    def hides(self) -> StaticMask:
        """The mask, which there always is behind __post_init__."""
        assert self.mask is not None
        return self.mask

    @property
    def flops(self) -> float:
        """Floating-point operations of both products, on whole tiles."""
        return 2.0 * self.batch * self.heads * (self.dim + self.v_dim) * self.hides.pairs * self.layout.token_tile**2

    def hidden(self, score: tirx.Expr, q: tirx.Expr, k: tirx.Expr, value: float) -> tirx.Expr:
        """Return a score, or ``value`` where the key is outside of the band or only pads its tile."""
        left, right, other = self.hides.left, self.hides.right, REAL.const(value)
        if right is not None:
            score = tirx.Select(k <= q + right, score, other)
        if left is not None:
            score = tirx.Select(k >= q - left, score, other)
        return tirx.Select(k < self.keys, score, other) if self.keys % self.layout.token_tile else score

    def capped(self, score: tirx.Expr) -> tirx.Expr:
        """Return a scaled score behind the soft cap."""
        if not self.soft_cap:
            return score * REAL.const(self.scale)
        return REAL.const(self.soft_cap) * tanh(score * REAL.const(self.scale / self.soft_cap))

    @property
    def tiles(self) -> tuple[int, int]:
        """Token tiles of a sequence of queries, and of keys."""
        return self.layout.tiles(self.length), self.layout.tiles(self.keys)

    @property
    def key_bias_shape(self) -> tuple[int, int, int, int]:
        """Of the buffer of biases of keys; one element where there are none."""
        batch, heads = self.key_bias or (1, 1)
        return batch, heads, 1, self.keys if self.key_bias else 1

    @property
    def score_bias_shape(self) -> tuple[int, int, int]:
        """Of the buffer of biases of scores, each query tile's beside each other; one element where there are none."""
        batch, heads = self.score_bias or (1, 1)
        return (batch * heads * self.tiles[0], self.keys, self.layout.token_tile) if self.score_bias else (1, 1, 1)

    def first(self, tile: tirx.Expr) -> tirx.Expr | int:
        """Return the first tile of keys that a tile of queries sees."""
        return piecewise([first for first, _ in self.hides.tiles], tile)

    def seen(self, tile: tirx.Expr) -> tirx.Expr | int:
        """Return how many tiles of keys a tile of queries sees."""
        return piecewise([last for _, last in self.hides.tiles], tile) - self.first(tile)

    def biased(self, score: tirx.Expr, key_bias: tirx.Buffer, score_bias: tirx.Buffer, at: tuple) -> tirx.Expr:
        """Return what goes into the softmax of a product at (sequence, head, tile of queries, query of the tile, key)."""
        b, h, i, t, key = at
        tile, (key_batch, key_heads, _, _) = self.layout.token_tile, self.key_bias_shape
        score, key_ = self.capped(score), key if self.keys % tile == 0 else tirx.min(key, self.keys - 1)
        if self.key_bias:
            score = score + key_bias[b if key_batch > 1 else 0, h if key_heads > 1 else 0, 0, key_]
        if self.score_bias:
            batch, heads = self.score_bias
            row = (b if batch > 1 else 0) * heads + (h if heads > 1 else 0)
            score = score + score_bias[row * self.tiles[0] + i, key_, t]
        return self.hidden(score, i * tile + t, key, MASKED)


def piecewise(values: list[int], i: tirx.Var) -> tirx.Expr | int:
    """Return ``values[i]`` as arithmetic: a clamped line where that is what they are, else one comparison for each step."""
    low, high = min(values), max(values)
    if low == high:
        return low
    for offset in {v - j for j, v in enumerate(values)}:
        if all(v == min(max(j + offset, low), high) for j, v in enumerate(values)):
            return tirx.min(tirx.max(i + offset, low), high)
    result: tirx.Expr = tirx.const(values[0], "int32")
    for j in range(1, len(values)):
        if values[j] != values[j - 1]:
            result = tirx.Select(i >= j, tirx.const(values[j], "int32"), result)
    return result
