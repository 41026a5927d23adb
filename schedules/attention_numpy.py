"""Attention in NumPy: exact in float64, and rounded at each step as the kernel of float16 rounds.

What a level of int8 computes is proved by it, and tests compare with it; the kernels have no part in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rt3_tvm.schedules.attention_shape import HIDDEN, LOG2_E, LOWEST, AttentionShape
from rt3_tvm.schedules.vector_math import CUBIC_POWER

Array = np.ndarray
SCALE_OF_WEIGHTS = 2.0**-4
"""So that the largest weights are near 1: the cubic's leading coefficient is left out."""
LEAST_POWER = -123
"""Weights whose whole power is no larger are 0."""


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """What a call of attention reads: q, k and v in tiles, biases of keys and of scores as the kernel takes them."""

    q: Array
    k: Array
    v: Array
    key_bias: Array
    score_bias: Array

    def heads(self, shape: AttentionShape) -> tuple[Array, Array, Array]:
        """Return q, k and v as (batch, heads, tokens, features), tokens that pad a tile too, keys of each head of queries."""
        share = shape.heads // shape.kv_heads

        def split(tiles: Array, count: int, features: int) -> Array:
            tokens = tiles.transpose(0, 2, 1).reshape(shape.batch, -1, count, features)
            return tokens.transpose(0, 2, 1, 3).astype(np.float32)

        k, v = split(self.k, shape.kv_heads, shape.dim), split(self.v, shape.kv_heads, shape.v_dim)
        return split(self.q, shape.heads, shape.dim), np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)


def exact_attention(shape: AttentionShape, inputs: AttentionInputs) -> Array:
    """Return softmax(scores) V as the kernel lays it out, (tiles, heads * features of a value, 16), in float64."""
    q, k, v = (x.astype(np.float64) for x in inputs.heads(shape))
    with np.errstate(invalid="ignore", over="ignore"):
        scores = _ended(shape, inputs, q @ k.swapaxes(-1, -2) * shape.factor)
        weights = np.exp2(np.maximum(scores - scores.max(axis=-1, keepdims=True), -1000.0))
        weights[scores <= HIDDEN] = 0.0
        mixed = weights @ v / np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    return _tiles(shape, mixed)


def rounded_attention(shape: AttentionShape, inputs: AttentionInputs, tiles: int, fused: bool) -> Array:
    """Return what the kernel of float16 gives whose tasks have some tiles of queries.

    ``fused``: a multiply-add is rounded once, as where a CPU has arithmetic on float16; else product and sum are rounded.
    """
    q, k, v = inputs.heads(shape)
    with np.errstate(invalid="ignore", over="ignore"):
        q, k, v = (x.astype(np.float16) for x in (q * np.float32(shape.factor), k, v))
        scores = _ended(shape, inputs, _products(shape, q, k, fused))
        largest = np.rint(np.maximum(scores.max(axis=-1, keepdims=True), np.float32(LOWEST)))
        whole = np.rint(scores)
        powers = np.exp2(np.maximum(whole - largest, LEAST_POWER - 1)) * (whole - largest > LEAST_POWER)
        weights = _cubic(scores - whole) * powers * np.float32(SCALE_OF_WEIGHTS)
        total = np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        return _tiles(shape, _contexts(shape, weights.astype(np.float16), v, tiles, fused) / total)


def _products(shape: AttentionShape, q: Array, k: Array, fused: bool) -> Array:
    """Return Q K^T: each part of the features summed in float16, the parts in float32."""
    total = np.zeros((*q.shape[:-1], k.shape[-2]), np.float32)
    for part in range(0, shape.dim, shape.longest_score):
        features = range(part, part + shape.longest_score)
        total = total + _sum(((q[..., :, None, d], k[..., None, :, d]) for d in features), fused)
    return total


def _contexts(shape: AttentionShape, weights: Array, v: Array, tiles: int, fused: bool) -> Array:
    """Return the weights' products with V: spans of keys summed in float16, the spans in float32."""
    tile, keys = shape.layout.token_tile, shape.span(tiles) * shape.layout.token_tile
    mixed = []
    for n, (first, last) in enumerate(shape.hides.blocks(tiles)):
        seen, own = slice(first * tile, last * tile), slice(n * tiles * tile, (n + 1) * tiles * tile)
        w = weights[:, :, own, seen].reshape(*weights.shape[:2], tiles * tile, -1, keys)
        x = v[:, :, seen].reshape(*v.shape[:2], 1, -1, keys, shape.v_dim)
        spans = _sum(((w[..., j, None], x[..., j, :]) for j in range(keys)), fused)
        mixed.append(spans.sum(axis=-2, dtype=np.float32))
    return np.concatenate(mixed, axis=2)


def _sum(factors: Iterable[tuple[Array, Array]], fused: bool) -> Array:
    """Return a sum of products, one by one in float16; a fused one has to be exact before it is rounded."""
    wide = np.float64 if fused else np.float32
    total = np.zeros((), wide)
    for a, b in factors:
        product = a.astype(wide) * b.astype(wide)
        product = product if fused else product.astype(np.float16).astype(wide)
        total = (total + product).astype(np.float16).astype(wide)
    return total.astype(np.float32)


def _cubic(r: Array) -> Array:
    c, a, b = map(np.float32, CUBIC_POWER)
    return (r + c) * (r * r + b + r * a)


def _ended(shape: AttentionShape, inputs: AttentionInputs, products: Array) -> Array:
    """Return what goes into the softmax, in powers of 2: capped, biased, hidden."""
    (tiles, key_tiles), tile, dtype = shape.tiles, shape.layout.token_tile, products.dtype
    scores, room = products, (0, key_tiles * tile - shape.keys)
    if shape.soft_cap:
        scores = dtype.type(shape.soft_cap * LOG2_E) * np.tanh(scores)
    if shape.key_bias:
        bias = np.maximum(inputs.key_bias.astype(dtype) * dtype.type(LOG2_E), LOWEST)
        scores = scores + np.pad(bias, [(0, 0)] * 3 + [room])
    if shape.score_bias:
        bias = inputs.score_bias.astype(dtype).reshape(*shape.score_bias, tiles, shape.keys, tile).swapaxes(-1, -2)
        bias = bias.reshape(*shape.score_bias, tiles * tile, shape.keys) * dtype.type(LOG2_E)
        scores = np.maximum(scores + np.pad(bias, [(0, 0)] * 3 + [room]), LOWEST)
    return np.where(_shown(shape), scores, dtype.type(HIDDEN))


def _shown(shape: AttentionShape) -> Array:
    """Return which keys a query sees, (tokens, keys), those that pad a tile too."""
    (tiles, key_tiles), tile = shape.tiles, shape.layout.token_tile
    shown = shape.hides.shown(tiles * tile, key_tiles * tile) & (np.arange(key_tiles * tile) < shape.keys)
    for i, (first, last) in enumerate(shape.hides.tiles):
        shown[i * tile : (i + 1) * tile, : first * tile] = False
        shown[i * tile : (i + 1) * tile, last * tile :] = False
    return shown


def _tiles(shape: AttentionShape, mixed: Array) -> Array:
    """Return (batch, heads, tokens, features) as (tiles, heads * features, 16)."""
    tokens = mixed.transpose(0, 1, 3, 2).reshape(shape.batch, shape.heads * shape.v_dim, shape.tiles[0], -1)
    return np.ascontiguousarray(tokens.transpose(0, 2, 1, 3)).reshape(
        -1, shape.heads * shape.v_dim, shape.layout.token_tile
    )
