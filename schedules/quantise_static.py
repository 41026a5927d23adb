"""``quantise_static``: activations as int8 by factors that calibration found, one for each feature.

What a step is worth is the same for all tokens, so that nothing is searched for; what is larger than calibration has seen is cut
off. Smoothing is in the factors: it costs nothing.
"""

from functools import cache

from tvm import tirx
from tvm.script import tirx as T

from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_packing import LARGEST
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, REAL
from rt3_tvm.schedules.quantise import QuantiseShape, marked, store_features
from rt3_tvm.schedules.tasks import TASKS_ATTR


@cache  # TVMScript is parsed anew on every call
def quantise_static(shape: QuantiseShape) -> tirx.PrimFunc:
    """Return the kernel x (tiles, features, 16), factors (features + 1) -> (lines (lines, features, tokens), scales (tiles, 16)).

    The last of the factors is what a step is worth, which all scales are. What fills up a line is as in ``quantise``, and so is a
    table, which stands behind the factors.
    """
    lines, features, dot = shape.lines, shape.features, DOT_PRODUCTS[shape.dot]
    lanes, tile, real = lines.lanes, FEATURE_MAJOR.token_tile, REAL.dtype

    def narrow(x: tirx.Buffer, factors: tirx.Buffer, y: tirx.Buffer, line: tirx.Var, table: tirx.Buffer | None) -> None:
        most, least = (tirx.Broadcast(REAL.const(limit), lanes) for limit in (LARGEST, -LARGEST))

        def number(feature: tirx.Expr, part: int) -> tirx.Expr:
            first = line * lines.tokens + part * lanes
            at = T.min(T.floordiv(first, tile), shape.tiles - 1)
            real = tirx.BufferLoad(x, [at, feature, tirx.Ramp(T.floormod(first, tile), 1, lanes)])
            scaled = real * tirx.Broadcast(factors[feature], lanes)
            return dot.to_int(T.max(T.min(scaled, most), least))

        store_features(shape, y, line, 1, number, table)

    @T.inline
    def each_line(
        X: tirx.Buffer, factors: tirx.Buffer, Y: tirx.Buffer, scales: tirx.Buffer, table: tirx.Buffer | None
    ) -> None:
        for line in T.serial(lines.count(shape.tiles), annotations={TASKS_ATTR: 1}):
            for part in T.unroll(lines.tiles):
                for t in T.vectorized(tile):
                    scales[T.min(line * lines.tiles + part, shape.tiles - 1), t] = factors[features]
            narrow(X, factors, Y, line, table)

    @T.prim_func(s_tir=True)
    def quantise_static(x: T.handle, g: T.handle, y: T.handle, s: T.handle) -> None:
        X = T.match_buffer(x, FEATURE_MAJOR.shape(shape.tiles, features), real)
        factors = T.match_buffer(g, (features + 1,), real)
        Y = T.match_buffer(y, shape.written, INT8.dtype)
        scales = T.match_buffer(s, (shape.tiles, tile), real)
        each_line(X, factors, Y, scales, None)

    @T.prim_func(s_tir=True)
    def quantise_static_placed(x: T.handle, g: T.handle, p: T.handle, y: T.handle, s: T.handle) -> None:
        X = T.match_buffer(x, FEATURE_MAJOR.shape(shape.tiles, features), real)
        factors = T.match_buffer(g, (features + 1,), real)
        table = T.match_buffer(p, (shape.places,), "int32")
        Y = T.match_buffer(y, shape.written, INT8.dtype)
        scales = T.match_buffer(s, (shape.tiles, tile), real)
        each_line(X, factors, Y, scales, table)

    return marked(quantise_static_placed if shape.places else quantise_static, shape)
