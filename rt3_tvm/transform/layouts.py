"""In which layouts a tensor of the lowered module exists, and how it gets into another.

Three layouts of a token tensor of real numbers: plain (batch, length, features), as the model wrote it; feature-major (tiles,
features, 16), which our kernels work in; and heads-first (batch, heads, length, dim), which costs nothing: it is a name for a
feature-major tensor that the model has transposed. Linear layers of another element type read a fourth, made of the second.
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, relax, tirx
from tvm.ir.expr import GenericConst

from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.convert import ConversionShape
from rt3_tvm.schedules.int8_lines import Quantised
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, REAL, FeatureMajor
from rt3_tvm.schedules.quantise import QuantiseShape
from rt3_tvm.transform.composites import is_real, static_shape
from rt3_tvm.transform.context import VariantContext, WeightRef
from rt3_tvm.transform.graph import constant
from rt3_tvm.transform.recognise_idioms import HEADS_FIRST

OPAQUE = 8
"""TVM's pattern kind of a function that operator fusion leaves alone: our kernels have schedules of their own."""


Arguments = dict[str, relax.Expr]
"""What a call of a composite passes, by role."""


@dataclass(frozen=True)
class Tokens:
    """The logical shape behind a feature-major tensor, and its layout."""

    batch: int
    length: int
    features: int
    layout: FeatureMajor = FEATURE_MAJOR

    @property
    def tiles(self) -> int:
        """Token tiles, each sequence padded to whole ones."""
        return self.batch * self.layout.tiles(self.length)

    @property
    def sizes(self) -> tuple[FeatureMajor, int, int, int]:
        """What fixes the kernels at the border of the layout."""
        return self.layout, self.batch, self.length, self.features

    def ty(self) -> relax.TensorType:
        """Return the type of the feature-major tensor."""
        return tensor(self.layout.shape(self.tiles, self.features), self.layout.element.dtype)


@dataclass(frozen=True)
class QuantisedTensor:
    """Steps of int8 and what a step of each token is worth; by the calibration of which weight, empty for none."""

    steps: relax.Expr
    scales: relax.Expr
    smoothed: str


def tensor(shape: tuple[int, ...], dtype: str = REAL.dtype) -> relax.TensorType:
    """Return a tensor type."""
    return relax.TensorType(shape, dtype)


def tokens_of(expr: relax.Expr) -> Tokens | None:
    """Return the logical shape of a tensor of numbers ([batch,] length, features) or (batch, length, heads, dim).

    Models that put the length first (XLNet) have a second axis of 1 for one input: those are tokens of one sequence, not
    sequences of one token, each of which would fill a tile by itself.
    """
    if not isinstance(expr.ty, relax.TensorType) or not is_real(expr):
        return None
    shape = static_shape(expr)
    if len(shape) not in (2, 3, 4):
        return None
    batch, length = shape[:2] if len(shape) > 2 else (1, shape[0])
    features = math.prod(shape[2:] if len(shape) > 2 else shape[1:])
    return Tokens(1, batch, features) if length == 1 else Tokens(batch, length, features)


def token_shape(expr: relax.Expr) -> Tokens:
    """Return the logical shape of a tensor that is known to have one."""
    tokens = tokens_of(expr)
    assert tokens is not None
    return tokens


class Layouts:
    """The values of the module that is being built, by the variables of the old one."""

    def __init__(self, mod: IRModule, context: VariantContext) -> None:
        self.mod, self.context = mod, context
        self.builder = relax.BlockBuilder(mod)
        self.plain: dict[relax.Var, relax.Expr] = {}
        self.feature_major: dict[relax.Var, relax.Expr] = {}
        self.heads_first: dict[relax.Var, relax.Expr] = {}
        self.score_tiles: dict[relax.Var, relax.Expr] = {}
        self.converted: dict[tuple[relax.Expr, FeatureMajor], relax.Expr] = {}  # by what was converted
        self.quantised: dict[tuple[relax.Expr, Quantised, str], QuantisedTensor] = {}
        self.tuples: dict[relax.Var, list[relax.Expr]] = {}  # feature-major fields
        self.bound_tuples: dict[relax.Var, list[relax.Expr]] = {}  # fields of the old module
        self.parameters: dict[str, relax.Var] = {}
        self.references: dict[str, WeightRef] = {}

    def as_plain(self, expr: relax.Expr) -> relax.Expr:
        """Return an expression in its own layout, transposing it back once if need be."""
        if not isinstance(expr, relax.Var):
            return expr
        if expr not in self.plain:
            self.plain[expr] = self._made_plain(expr)
        return self.plain[expr]

    def _made_plain(self, expr: relax.Var) -> relax.Expr:
        name = self.context.parameters.get(expr.name)
        if name is not None:
            return self.parameter(self.context.raw(name), expr.ty)
        shape = static_shape(expr)
        if expr in self.heads_first:
            batch, heads, length, dim = shape
            rows = self._from_feature_major(self.heads_first[expr], Tokens(batch, length, heads * dim))
            split = self.builder.emit(relax.op.reshape(rows, (batch, length, heads, dim)))
            return self.builder.emit(relax.op.permute_dims(split, HEADS_FIRST))
        if expr in self.score_tiles and expr not in self.feature_major:
            batch, heads, queries, keys = shape
            scores = self._from_feature_major(self.score_tiles[expr], Tokens(batch * heads, queries, keys))
            return self.builder.emit(relax.op.reshape(scores, shape))
        rows = self._from_feature_major(self.feature_major[expr], token_shape(expr))
        return rows if static_shape(rows) == shape else self.builder.emit(relax.op.reshape(rows, shape))

    def _from_feature_major(self, value: relax.Expr, t: Tokens) -> relax.Expr:
        return self.kernel("from_feature_major", t.sizes, [value], tensor((t.batch, t.length, t.features)))

    def as_feature_major(self, expr: relax.Expr) -> relax.Expr:
        """Return a token tensor in the feature-major layout, transposing it once if need be; constants at compile time."""
        t = token_shape(expr)
        array = constant(expr)
        if array is not None:
            return relax.const(t.layout.pack(array.reshape(t.batch, t.length, t.features)), t.layout.element.dtype)
        if expr not in self.feature_major:
            source, wanted = self.as_plain(expr), (t.batch, t.length, t.features)
            if static_shape(source) != wanted:
                source = self.builder.emit(relax.op.reshape(source, wanted))
            self.feature_major[expr] = self.kernel("to_feature_major", t.sizes, [source], t.ty())
        return self.feature_major[expr]

    def as_layout(self, expr: relax.Expr, layout: FeatureMajor) -> relax.Expr:
        """Return a token tensor in a layout that linear layers multiply in, converted once for all of them."""
        source, t = self.as_feature_major(expr), token_shape(expr)
        if layout == t.layout:
            return source
        if (source, layout) not in self.converted:
            shape = ConversionShape(t.layout, layout, t.tiles, t.features)
            ty = tensor(shape.target_shape, layout.element.dtype)
            self.converted[source, layout] = self.kernel("convert", (shape,), [source], ty)
        return self.converted[source, layout]

    def as_int8(self, expr: relax.Expr, read: Quantised, weight: str, table: str = "") -> QuantisedTensor:
        """Return a token tensor quantised, once for all layers that read it so; by the calibration of the first one's weight.

        ``table``: the weight whose order of columns it is written in; empty for their own.
        """
        source, t = self.as_feature_major(expr), token_shape(expr)
        if (source, read, table) not in self.quantised:
            places = t.features if table else 0
            shape = QuantiseShape.of(t.tiles, t.features, read, places)
            types = [tensor(shape.written, INT8.dtype), tensor((t.tiles, t.layout.token_tile))]
            known = self.context.calibration.get(weight)
            static = known is not None and len(known) == t.features
            args = [source]
            if static:
                args.append(self.parameter(WeightRef("factors", weight), tensor((t.features + 1,))))
            if table:
                args.append(self.parameter(WeightRef("table", table), tensor((places,), "int32")))
            made = self.kernel("quantise_static" if static else "quantise", (shape,), args, types)
            steps, scales = (self.builder.emit(relax.TupleGetItem(made, i)) for i in range(2))
            self.quantised[source, read, table] = QuantisedTensor(steps, scales, weight if static else "")
        return self.quantised[source, read, table]

    def as_heads_first(self, expr: relax.Expr) -> relax.Expr:
        """Return the feature-major tensor behind a (batch, heads, length, dim) tensor."""
        if expr not in self.heads_first:
            batch, heads, length, dim = static_shape(expr)
            swapped = self.builder.emit(relax.op.permute_dims(self.as_plain(expr), HEADS_FIRST))
            rows = self.builder.emit(relax.op.reshape(swapped, (batch, length, heads * dim)))
            t = Tokens(batch, length, heads * dim)
            self.heads_first[expr] = self.kernel("to_feature_major", t.sizes, [rows], t.ty())
        return self.heads_first[expr]

    def as_score_tiles(self, expr: relax.Expr) -> relax.Expr:
        """Return a (batch or 1, heads or 1, queries, keys) tensor as (.. * query tiles, keys, 16), constants at compile time.

        That is the feature-major layout of queries whose features are keys; layers that share a bias share the result.
        """
        batch, heads, queries, keys = static_shape(expr)
        t, array = Tokens(batch * heads, queries, keys), constant(expr)
        if array is not None:
            return relax.const(t.layout.pack(array.reshape(t.batch, queries, keys)), t.layout.element.dtype)
        if expr not in self.score_tiles:
            source = self.builder.emit(relax.op.reshape(self.as_plain(expr), (t.batch, queries, keys)))
            self.score_tiles[expr] = self.kernel("to_feature_major", t.sizes, [source], t.ty())
        return self.score_tiles[expr]

    def parameter(self, ref: WeightRef, ty: relax.TensorType) -> relax.Var:
        """Return the parameter of the new ``main`` that holds a weight."""
        name = ref.name
        assert self.references.setdefault(name, ref) == ref, f"two weights are called {name}"
        if name not in self.parameters:
            self.parameters[name] = relax.Var(name, ty)
        return self.parameters[name]

    def kernel(
        self,
        family: str,
        arguments: tuple[Any, ...],
        args: list[relax.Expr],
        ty: relax.TensorType | list[relax.TensorType],
        in_place: bool = False,
    ) -> relax.Var:
        """Emit a call of the kernel that ``arguments`` of its family fix; equal kernels become one function.

        ``in_place``: the last of ``args`` is also its output.
        """
        function = self.builder.add_func(opaque_kernel(family, *arguments), family)
        if in_place:
            return self.builder.emit(relax.op.call_tir_inplace(function, relax.Tuple(args), len(args) - 1, ty))
        return self.builder.emit(relax.call_tir(function, args, ty))


def opaque_kernel(family: str, *arguments: Any) -> tirx.PrimFunc:
    """Return a family's kernel, marked so that operator fusion leaves it alone."""
    return kernel(family, *arguments).with_attr("op_pattern", OPAQUE)


def is_scalar(expr: relax.Expr) -> bool:
    """Return whether an expression is a constant of one element and no axes."""
    return isinstance(expr, GenericConst) and not static_shape(expr)
