"""What each family computes, in NumPy and float64: the arguments that fix a kernel, its input arrays, and back its outputs.

Nothing here shares code with the kernels but the layout. Also the lanes that pad a tile have a value.
"""

import math
from typing import Any

import numpy as np
from tvm import tirx

from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.convert import ConversionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.int8_lines import served_tokens
from rt3_tvm.schedules.int8_packing import LARGEST, LEAST
from rt3_tvm.schedules.layer_norm import NormShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, FeatureMajor
from rt3_tvm.schedules.linear_plan import LinearPart, LinearPlan
from rt3_tvm.schedules.matmul import MatmulShape
from rt3_tvm.schedules.quantise import QuantiseShape
from rt3_tvm.schedules.relative_scores import RelativeShape

Arrays = list[np.ndarray]

ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
}
"""Those that examples use; tests/kernels/test_vector_math.py has them all."""


def linear(
    plan: LinearPlan, _part: LinearPart, activation: str, _cpu: CpuShape, x: Any, values: Any, offsets: Any, bias: Any
) -> Arrays:
    """Y = act(W X + b), for a plan of one part; with few tokens what pads the tile behind them is zeros."""
    layout, rows, padded = plan.layout, plan.packing.rows, plan.tiles * plan.layout.token_tile
    tokens = layout.unpack(x.reshape(layout.shape(plan.tiles, plan.matrix.cols)), 1, padded)[0].astype(np.float64)
    y = np.empty((padded, plan.matrix.rows))
    for block in range(plan.matrix.rows // rows):
        columns = offsets[:, block * rows // plan.matrix.group].astype(np.int64) // FEATURE_MAJOR.token_tile
        sums = np.einsum("tck,ckr->tr", tokens[:, columns], values[:, block].astype(np.float64))
        y[:, block * rows : (block + 1) * rows] = sums + bias[block]
    y = ACTIVATIONS[activation](y)
    if plan.family == "few_token_linear":
        y[plan.tokens.length :] = 0.0
    return [FEATURE_MAJOR.pack(y[None])]


def convert(shape: ConversionShape, x: Any) -> Arrays:
    """Return the numbers rounded, in the other layout."""
    tokens = shape.source.unpack(x, 1, shape.tiles * shape.source.token_tile)
    return [shape.target.pack(tokens.astype(shape.target.element.dtype))]


def quantise(shape: QuantiseShape, x: Any, table: Any = slice(None)) -> Arrays:
    """Return the steps of each token, rounded as NumPy does, ties to even, and what a step is."""
    x = served_tokens(x, shape.served)
    scales = np.maximum(np.abs(x).max(axis=1), np.float32(LEAST)) / np.float32(LARGEST)
    return [shape.lines.pack(np.rint(x * (1 / scales)[:, None]).astype(np.int8)[:, table]), scales]


def quantise_static(shape: QuantiseShape, x: Any, factors: Any, table: Any = slice(None)) -> Arrays:
    """Return the steps, cut off at the largest, and what a step is."""
    steps = np.clip(np.rint(served_tokens(x, shape.served) * factors[:-1, None]), -LARGEST, LARGEST).astype(np.int8)
    return [shape.lines.pack(steps[:, table]), np.full((len(x), x.shape[2]), factors[-1])]


def int8_linear(
    plan: LinearPlan,
    part: LinearPart,
    activation: str,
    _cpu: CpuShape,
    x: Any,
    token_scales: Any,
    values: Any,
    offsets: Any,
    bias: Any,
    scales: Any,
    _: Any,
) -> Arrays:
    """Y = act(W X scales + b), the sums in integers, for a plan of one part; zeros in the lanes that are not served."""
    assert plan.quantised is not None
    shape, rows, lines = part.shape, plan.packing.rows, plan.quantised.lines
    steps = lines.unpack(x.reshape(lines.shape(shape.tiles, shape.cols)), shape.tiles).astype(np.int64)
    weights = values[..., None].view(np.int8).transpose(0, 2, 1, 3).reshape(shape.rows, -1).astype(np.int64)
    y = np.empty((shape.tiles, shape.rows, steps.shape[2]))
    for row in range(shape.rows):
        columns = offsets[row // shape.group].astype(np.int64) // steps.shape[2]
        if plan.matrix.quads:
            columns = (columns[:, None] + np.arange(4)).reshape(-1)
        sums = np.einsum("tcl,c->tl", steps[:, columns], weights[row])
        y[:, row] = (
            sums * token_scales.astype(np.float64) * scales[row // rows, row % rows] + bias[row // rows, row % rows]
        )
    return [served_tokens(ACTIVATIONS[activation](y), plan.served)]


def attention(shape: AttentionShape, _cpu: CpuShape, q: Any, k: Any, v: Any, key_bias: Any, _score_bias: Any) -> Arrays:
    """Softmax(scale Q K^T + key bias) V of each head, without a mask, a cap or a bias of scores."""
    layout = shape.layout
    padded = layout.tiles(shape.length) * layout.token_tile

    def heads(tiles: np.ndarray, count: int, length: int) -> np.ndarray:
        return layout.unpack(tiles, shape.batch, length).reshape(shape.batch, length, count, -1).astype(np.float64)

    queries, keys, values = heads(q, shape.heads, padded), *(heads(t, shape.kv_heads, shape.keys) for t in (k, v))
    keys, values = (np.repeat(t, shape.heads // shape.kv_heads, axis=2) for t in (keys, values))
    scores = np.einsum("bqhd,bkhd->bhqk", queries, keys) * shape.scale + key_bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return [layout.pack(np.einsum("bhqk,bkhd->bqhd", weights, values).reshape(shape.batch, padded, -1))]


def relative_scores(shape: RelativeShape, _block: int, *inputs: Any) -> Arrays:
    """(q r^T shifted as models shift it + one of two scores of a query) * gate * factor + bias; 0 where queries only pad."""
    layout, (batch, heads, length, keys) = shape.layout, (shape.batch, shape.heads, shape.queries, shape.keys)

    def unpacked(tiles: np.ndarray, of: tuple[int, int] | None = None) -> np.ndarray:
        of = of or (batch, heads)
        return layout.unpack(tiles, of[0] * of[1], length).reshape(*of, length, -1).astype(np.float64)

    q, r, flags, segments, gate, bias = inputs
    count = 1 if shape.shared else batch
    queries = layout.unpack(q, batch, length).reshape(batch, length, heads, shape.dim).astype(np.float64)
    places = layout.unpack(r, count, shape.positions).reshape(count, shape.positions, heads, shape.dim)
    scores = np.einsum("bqhd,bphd->bhqp", queries, np.broadcast_to(places, (batch, *places.shape[1:])))
    scores = scores.reshape(batch, heads, shape.positions, length)[:, :, shape.shift :]
    scores = scores.reshape(batch, heads, length, -1)[..., :keys]
    if shape.segments:
        pair = unpacked(segments)
        scores = scores + np.where(unpacked(flags, shape.segments) > 0, pair[..., 1:], pair[..., :1])
    scores = scores * (unpacked(gate, shape.gate) if shape.gate else 1) * shape.factor
    scores = scores + (unpacked(bias, shape.bias) if shape.bias else 0)
    return [layout.pack(scores.reshape(batch * heads, length, keys))]


def matmul(shape: MatmulShape, _block: tuple[int, int], a: Any, b: Any) -> Arrays:
    """C = A B for each pair of matrices."""

    def of(side: Any, i: int) -> int:
        return i // side.divisor % side.count

    pairs = ((a[of(shape.left, i)].astype(np.float64), b[of(shape.right, i)]) for i in range(shape.batch))
    return [np.stack([left @ right for left, right in pairs])]


def layer_norm(shape: NormShape, x: Any, residual: Any, gamma: Any, beta: Any) -> Arrays:
    """(x + r - mean) / sqrt(variance + epsilon) * gamma + beta over the features, or without mean and beta; and x + r."""
    total = x.astype(np.float64) + (residual if shape.residual else 0)
    centred = total - total.mean(axis=1, keepdims=True) if shape.centred else total
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + shape.epsilon) * gamma[:, None]
    y = scaled + beta[:, None] if shape.centred else scaled
    return [y, total] if shape.keep_sum else [y]


def rotary(
    layout: FeatureMajor, batch: int, length: int, heads: int, dim: int, x: Any, cosines: Any, sines: Any
) -> Arrays:
    """Return x cos + rotated(x) sin, of which the halves of each head's features are swapped and the first negated."""
    tiles = layout.tiles(length)
    split = x.reshape(batch, tiles, heads, dim, layout.token_tile).astype(np.float64)
    low, high = split[:, :, :, : dim // 2], split[:, :, :, dim // 2 :]
    rotated = np.concatenate([-high, low], axis=3)
    return [(split * cosines[None, :, None] + rotated * sines[None, :, None]).reshape(x.shape)]


def embedding(
    layout: FeatureMajor, batch: int, length: int, _rows: int, features: int, _dtype: str, table: Any, ids: Any
) -> Arrays:
    """Return the rows of a table."""
    return [layout.pack(table[ids].reshape(batch, length, features))]


def pattern_embedding(*arguments: Any) -> Arrays:
    """Rows of a table of which groups keep some columns: (layout, batch, length, rows, features, ..), values, columns, ids."""
    layout, batch, length, rows, features, _kept, group, _dtypes, values, columns, ids = arguments
    table = np.zeros((rows, features))
    np.put_along_axis(table, np.repeat(columns, group, axis=0).astype(np.int64), values, axis=1)
    return [layout.pack(table[ids].reshape(batch, length, features))]


def to_feature_major(layout: FeatureMajor, _batch: int, _length: int, _features: int, x: Any) -> Arrays:
    """(batch, length, features) as tiles."""
    return [layout.pack(x)]


def from_feature_major(layout: FeatureMajor, batch: int, length: int, _features: int, x: Any) -> Arrays:
    """Tiles as (batch, length, features)."""
    return [layout.unpack(x, batch, length)]


def elementwise(_func: tirx.PrimFunc, x: Any, y: Any) -> Arrays:
    """Return the sum, which the example of the family is."""
    return [x.astype(np.float64) + y]
