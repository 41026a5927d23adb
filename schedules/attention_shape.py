"""Sizes of attention, and what becomes of a score before the softmax."""

import math
from dataclasses import dataclass
from typing import Any, Self

from tvm import tirx

from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL, ElementType, FeatureMajor
from rt3_tvm.schedules.linear_decisions import largest_divisor
from rt3_tvm.schedules.vector_math import tanh

LOG2_E = math.log2(math.e)
HIDDEN = -3e38
"""Score of the keys that a band hides and of those that only pad a tile: their weight is 0 whatever the largest score is."""
LOWEST = -1.5 * 2.0**30
"""What biases below it are. Numbers of its size have no bits for a score: keys weigh the same where biases hide them all."""

LONGEST_SCORE, MOST_PARTS = 32, 8
"""Features of a score that float16 sums; in how many such parts at most."""
SPAN = 4
"""The most tiles of keys of a context that float16 sums."""


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
    element
        What both products multiply.
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
    element: ElementType = REAL

    def __post_init__(self) -> None:
        for name, default in (("kv_heads", self.heads), ("v_dim", self.dim), ("keys", self.length)):
            object.__setattr__(self, name, getattr(self, name) or default)
        if self.mask is None:
            object.__setattr__(self, "mask", StaticMask.none(self.length, self.keys))

    def to_attrs(self) -> dict[str, Any]:
        """Return the shape in its own layout as attributes of a function."""
        sizes = self.batch, self.length, self.heads, self.dim, self.kv_heads, self.v_dim, self.keys
        biases = [list(bias or ()) for bias in (self.key_bias, self.score_bias)]
        numbers = {"scale": self.scale, "soft_cap": self.soft_cap}
        return {
            "sizes": list(sizes),
            "mask": self.hides.to_attrs(),
            "biases": biases,
            "element": self.element.dtype,
        } | numbers

    @classmethod
    def of(cls, attrs: Any) -> Self:
        """Return the shape that :meth:`to_attrs` wrote."""
        batch, length, heads, dim, kv_heads, v_dim, keys = map(int, attrs["sizes"])
        key_bias, score_bias = ((int(b[0]), int(b[1])) if len(b) else None for b in attrs["biases"])
        mask, element = StaticMask.of(attrs["mask"]), ElementType.of(attrs["element"])
        scale, cap = float(attrs["scale"]), float(attrs["soft_cap"])
        own = mask, key_bias, score_bias, kv_heads, v_dim, keys, cap
        return cls(batch, length, heads, dim, scale, *own, element=element)

    @property
    def hides(self) -> StaticMask:
        """The mask, which there always is behind __post_init__."""
        assert self.mask is not None
        return self.mask

    @property
    def flops(self) -> float:
        """Floating-point operations of both products, on whole tiles."""
        return 2.0 * self.batch * self.heads * (self.dim + self.v_dim) * self.hides.pairs * self.layout.token_tile**2

    def hidden(self, score: tirx.Expr, q: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
        """Return a score, or HIDDEN where the key is outside of the band or only pads its tile."""
        left, right, other = self.hides.left, self.hides.right, REAL.const(HIDDEN)
        if right is not None:
            score = tirx.Select(k <= q + right, score, other)
        if left is not None:
            score = tirx.Select(k >= q - left, score, other)
        return tirx.Select(k < self.keys, score, other) if self.keys % self.layout.token_tile else score

    @property
    def factor(self) -> float:
        """What queries are multiplied by, so that their products with keys are powers of 2, or what is capped."""
        return self.scale / self.soft_cap if self.soft_cap else self.scale * LOG2_E

    @property
    def longest_score(self) -> int:
        """Features of a score that are summed in the type that is multiplied, where that is narrower than float32."""
        return largest_divisor(self.dim, LONGEST_SCORE)

    def span(self, tiles: int = 1) -> int:
        """Return the tiles of keys of a context that are summed so, where a task has some tiles of queries."""
        return largest_divisor(math.gcd(*(last - first for first, last in self.hides.blocks(tiles))), SPAN)

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

    def first(self, i: tirx.Expr, tiles: int = 1) -> tirx.Expr | int:
        """Return the first tile of keys that a block of some tiles of queries sees."""
        return piecewise([first for first, _ in self.hides.blocks(tiles)], i)

    def seen(self, i: tirx.Expr, tiles: int = 1) -> tirx.Expr | int:
        """Return how many tiles of keys a block of some tiles of queries sees."""
        return piecewise([last for _, last in self.hides.blocks(tiles)], i) - self.first(i, tiles)

    def key(self, key: tirx.Expr) -> tirx.Expr:
        """Return a key that there is, for one that may only pad its tile."""
        return key if self.keys % self.layout.token_tile == 0 else tirx.min(key, self.keys - 1)

    def bias_of_key(self, key_bias: tirx.Buffer, b: tirx.Expr, h: tirx.Expr, key: tirx.Expr) -> tirx.Expr:
        """Return what is added to all scores of a key, in powers of 2."""
        if not self.key_bias:
            return REAL.const(0.0)
        batch, heads = self.key_bias
        bias = key_bias[b if batch > 1 else 0, h if heads > 1 else 0, 0, self.key(key)]
        return tirx.max(bias * REAL.const(LOG2_E), REAL.const(LOWEST))

    @property
    def starts_biased(self) -> bool:
        """Whether sums begin at the bias of their key: it is 0, or hides, in most models, so that sums round as without it."""
        return bool(self.key_bias) and not self.score_bias and not self.soft_cap and self.element is REAL

    def ended(self, product: tirx.Expr, of_key: tirx.Expr, score_bias: tirx.Buffer, at: tuple) -> tirx.Expr:
        """Return what goes into the softmax, in powers of 2, of a sum at (sequence, head, query, key)."""
        b, h, q, key = at
        score = REAL.const(self.soft_cap * LOG2_E) * tanh(product) if self.soft_cap else product
        if not self.starts_biased and self.key_bias:
            score = score + of_key
        if self.score_bias:
            tile, (batch, heads) = self.layout.token_tile, self.score_bias
            row = (b if batch > 1 else 0) * heads + (h if heads > 1 else 0)
            of_score = score_bias[row * self.tiles[0] + tirx.floordiv(q, tile), self.key(key), tirx.floormod(q, tile)]
            score = tirx.max(score + of_score * REAL.const(LOG2_E), REAL.const(LOWEST))
        return self.hidden(score, q, key)


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
