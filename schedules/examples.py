"""A call of each family, small for tests or as large as in a model for timing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import te

from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.convert import ConversionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_lines import COLUMNS
from rt3_tvm.schedules.int8_packing import pack_int8, static_factors
from rt3_tvm.schedules.int8_plan import lines_of, takes_quads
from rt3_tvm.schedules.layer_norm import NormShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, FLOAT16, INT8, REAL, FeatureMajor
from rt3_tvm.schedules.linear_decisions import LinearPacking, MatrixShape
from rt3_tvm.schedules.linear_plan import TokenCount, plan_of_family
from rt3_tvm.schedules.matmul import BatchIndex, MatmulShape, register_block
from rt3_tvm.schedules.packing import pack_linear
from rt3_tvm.schedules.quantise import QuantiseShape
from rt3_tvm.schedules.relative_scores import RelativeShape, position_block

VOCABULARY = 1000
FEW = 2
"""Tokens of the examples of kernels for a handful of them."""


@dataclass(frozen=True)
class Sizes:
    """Of a small model or a real one: sequences, tokens, heads and their features, rows of the wide layer.

    Of a linear layer every ``group`` rows keep one column in ``sparsity``.
    """

    batch: int
    length: int
    heads: int
    dim: int
    rows: int
    group: int = 4
    sparsity: int = 4

    @property
    def features(self) -> int:
        """Features of a token."""
        return self.heads * self.dim


SMALL = Sizes(batch=2, length=20, heads=2, dim=16, rows=64)
"""Two sequences that do not fill their tiles."""
MINILM = Sizes(batch=1, length=128, heads=12, dim=32, rows=1536)
"""6 layers of 384 features, 1536 between."""


@dataclass(frozen=True, eq=False)
class Example:
    """The arguments that fix a kernel, and the arrays that one call of it reads."""

    arguments: tuple[Any, ...]
    inputs: list[np.ndarray]


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(REAL.dtype)


def _tokens(s: Sizes) -> np.ndarray:
    return FEATURE_MAJOR.pack(_numbers(s.batch, s.length, s.features))


def _ids(s: Sizes) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, s.batch * s.length).astype(np.int32)


def _columns(s: Sizes, matrix: MatrixShape) -> np.ndarray:
    """Return which columns each group keeps."""
    step = COLUMNS if matrix.quads else 1
    first = np.tile(np.arange(0, s.features, step), (s.rows // matrix.group, 1))
    kept = np.sort(np.random.default_rng(1).permuted(first, axis=1)[:, : matrix.kept // step])
    return (kept[:, :, None] + np.arange(step)).reshape(len(kept), -1).astype(np.int32)


def linear(family: str) -> Callable[[CpuShape, Sizes], Example]:
    """Return the example of a family of linear layers, with GELU."""

    def example(cpu: CpuShape, s: Sizes) -> Example:
        few = family == "few_token_linear"
        tokens = TokenCount(1, FEW) if few else TokenCount(s.batch, s.length)
        kept, dense = s.features // s.sparsity, family == "dense_linear"
        matrix = MatrixShape.dense_of(s.rows, s.features) if dense else MatrixShape(s.rows, s.features, kept, s.group)
        packing = (
            LinearPacking(4, 2, 4) if few else None
        )  # its vectors are the rows of a block: not each block has whole ones
        plan = plan_of_family(family, cpu, matrix, tokens, REAL, packing)
        columns = _columns(s, matrix)
        weight, bias = _numbers(s.rows, s.features) / np.sqrt(s.features), _numbers(s.rows)
        packed = pack_linear(weight, columns, np.ones_like(columns, np.bool_), bias, plan.packing)
        x = FEATURE_MAJOR.pack(_numbers(tokens.batch, tokens.length, s.features)).reshape(-1)
        arguments = (plan, plan.parts[0], "gelu", cpu)
        return Example(arguments, [x, packed.values, packed.offsets, np.ascontiguousarray(packed.bias)])

    return example


def convert(_cpu: CpuShape, s: Sizes) -> Example:
    """Return tokens that become float16 in wide tiles."""
    tiles = s.batch * FEATURE_MAJOR.tiles(s.length)
    shape = ConversionShape(FEATURE_MAJOR, FeatureMajor(FLOAT16, 2 * FEATURE_MAJOR.token_tile), tiles, s.features)
    return Example((shape,), [_tokens(s)])


def quantise(cpu: CpuShape, s: Sizes) -> Example:
    """Return tokens that become int8; enough for several tasks."""
    x = np.concatenate([_tokens(s)] * 3)
    return Example((QuantiseShape(len(x), s.features, lines_of(cpu), cpu.dot),), [x])


def quantise_static(cpu: CpuShape, s: Sizes) -> Example:
    """Return the same with factors of features, some of whose values are larger than was calibrated."""
    example = quantise(cpu, s)
    (x,) = example.inputs
    return Example(example.arguments, [x, static_factors(0.7 * np.abs(x).max(axis=(0, 2)))])


def int8_linear(family: str) -> Callable[[CpuShape, Sizes], Example]:
    """Return the example of a family of linear layers in int8, with GELU; tokens and weights over the whole range."""

    def example(cpu: CpuShape, s: Sizes) -> Example:
        dense, kept, few = family == "dense_linear_int8", s.features // s.sparsity, family == "few_token_linear_int8"
        tokens = TokenCount(1, FEW) if few else TokenCount(s.batch, s.length)
        quads = family == "quad_linear_int8"
        matrix = MatrixShape(s.rows, s.features, kept, s.group, quads and takes_quads(cpu))
        matrix = MatrixShape.dense_of(s.rows, s.features) if dense else matrix
        packing = LinearPacking(4, 1, 1) if few else None
        plan = plan_of_family(family, cpu, matrix, tokens, INT8, packing)
        assert plan.quantised is not None
        weight, bias = _numbers(s.rows, s.features) / np.sqrt(s.features), _numbers(s.rows)
        columns, dot = _columns(s, matrix), DOT_PRODUCTS[cpu.dot]
        packed = pack_int8(
            weight, columns, np.ones_like(columns, np.bool_), bias, plan.packing, dot, quads=matrix.quads
        )
        random, tile = np.random.default_rng(2), FEATURE_MAJOR.token_tile
        x = plan.quantised.lines.pack(random.integers(-127, 128, (plan.tiles, s.features, tile)).astype(np.int8))
        scales = random.random((plan.tiles, tile)).astype(REAL.dtype) / 50
        weights = [packed.values, packed.offsets, packed.bias, packed.scales, packed.starts]
        return Example((plan, plan.parts[0], "gelu", cpu), [x.reshape(-1), scales, *map(np.ascontiguousarray, weights)])

    return example


def attention(cpu: CpuShape, s: Sizes) -> Example:
    """Attention with a mask of keys."""
    shape = AttentionShape(s.batch, s.length, s.heads, s.dim, s.dim**-0.5, key_bias=(s.batch, 1))
    none = np.zeros((1, 1, 1), REAL.dtype)
    inputs = [*(_tokens(s) * scale for scale in (1, 2, 3)), _numbers(s.batch, 1, 1, s.length), none]
    return Example((shape, cpu), [i.astype(REAL.dtype) for i in inputs])


def attention_float16(cpu: CpuShape, s: Sizes) -> Example:
    """The same in float16, for a core that is taken to have it."""
    example = attention(cpu, s)
    shape, _ = example.arguments
    half = cpu if FLOAT16 in cpu.elements else replace(cpu, costs=(*cpu.costs, (FLOAT16, cpu.cost(REAL))))
    return Example((replace(shape, element=FLOAT16), half), example.inputs)


def relative_scores(cpu: CpuShape, s: Sizes) -> Example:
    """Scores that are shifted by two positions a query, with all that can be added and multiplied."""
    keys = s.length + 3
    positions = 2 * s.length + keys + 1
    one, each = (1, 1), (s.batch, s.heads)
    shape = RelativeShape(
        s.batch, s.length, s.heads, s.dim, positions, keys, 2, s.dim**-0.5, True, (s.batch, 1), one, each
    )
    r = FEATURE_MAJOR.pack(_numbers(1, positions, s.features))
    flags = (FEATURE_MAJOR.pack(_numbers(s.batch, s.length, keys)) > 0).astype(REAL.dtype)
    segments = FEATURE_MAJOR.pack(_numbers(s.batch * s.heads, s.length, 2))
    gate = FEATURE_MAJOR.pack(_numbers(1, s.length, keys))
    bias = FEATURE_MAJOR.pack(_numbers(s.batch * s.heads, s.length, keys))
    return Example((shape, position_block(shape, cpu)), [_tokens(s), r, flags, segments, gate, bias])


def matmul(cpu: CpuShape, s: Sizes) -> Example:
    """Scores of heads with keys that all sequences share; no side is a multiple of its block."""
    one, count = BatchIndex(s.heads), s.batch * s.heads
    shape = MatmulShape(count, s.length - 1, s.dim, s.length + 1, BatchIndex(count), one)
    inputs = [_numbers(count, shape.rows, shape.inner), _numbers(s.heads, shape.inner, shape.columns)]
    return Example((shape, register_block(shape, cpu)), inputs)


def layer_norm(_cpu: CpuShape, s: Sizes) -> Example:
    """LayerNorm with the residual before it, whose sum is kept."""
    tiles = s.batch * FEATURE_MAJOR.tiles(s.length)
    shape = NormShape(tiles, s.features, 1e-5, residual=True, keep_sum=True)
    return Example((shape,), [_tokens(s), 3 + 2 * _tokens(s), _numbers(s.features), 1 + _numbers(s.features)])


def rotary(_cpu: CpuShape, s: Sizes) -> Example:
    """Return rotary positions of all heads; of their angles any numbers will do."""
    angles = FEATURE_MAJOR.pack(_numbers(1, s.length, s.dim))
    inputs = [_tokens(s), np.cos(angles), np.sin(angles)]
    return Example((FEATURE_MAJOR, s.batch, s.length, s.heads, s.dim), inputs)


def embedding(_cpu: CpuShape, s: Sizes) -> Example:
    """Return a look-up of words."""
    ids, table = _ids(s), _numbers(VOCABULARY, s.features)
    return Example((FEATURE_MAJOR, s.batch, s.length, VOCABULARY, s.features, str(ids.dtype)), [table, ids])


def pattern_embedding(_cpu: CpuShape, s: Sizes) -> Example:
    """Return a look-up in a table of which two rows share their columns."""
    group, kept, ids = 2, s.features // s.sparsity, _ids(s)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(s.features), (VOCABULARY // group, 1)), axis=1)
    columns = np.sort(order[:, :kept]).astype(np.uint16)
    dtypes = str(columns.dtype), str(ids.dtype)
    arguments = (FEATURE_MAJOR, s.batch, s.length, VOCABULARY, s.features, kept, group, dtypes)
    return Example(arguments, [_numbers(VOCABULARY, kept), columns, ids])


def to_feature_major(_cpu: CpuShape, s: Sizes) -> Example:
    """Return tokens that enter."""
    x = _numbers(s.batch, s.length, s.features)
    return Example((FEATURE_MAJOR, s.batch, s.length, s.features), [x])


def from_feature_major(_cpu: CpuShape, s: Sizes) -> Example:
    """Return tokens that leave."""
    return Example((FEATURE_MAJOR, s.batch, s.length, s.features), [_tokens(s)])


def elementwise(_cpu: CpuShape, s: Sizes) -> Example:
    """Return a sum, as TVM's own operators make it."""
    tokens = _tokens(s)
    x, y = (te.placeholder(tokens.shape, REAL.dtype, name=name) for name in "xy")
    total = te.compute(tokens.shape, lambda *i: x(*i) + y(*i), name="total")
    return Example((te.create_prim_func([x, y, total]),), [tokens, 2 * tokens + 1])
