"""``quantise``: activations as int8, with one scale for each token.

Symmetric, and as torch's fake quantisation rounds. The largest magnitude of a token is a running one over its features, in
vectors of tokens: nothing is reduced across lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_lines import COLUMNS, PARTS, PLACES_ATTR, QUADS_ATTR, SERVED_ATTR, Lines, Quantised
from rt3_tvm.schedules.int8_packing import LARGEST, LEAST
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, REAL
from rt3_tvm.schedules.linear_decisions import largest_divisor
from rt3_tvm.schedules.tasks import TASKS_ATTR

UNROLLED = 4
"""Features of an iteration."""
CHAINS = 2
"""Running maxima of each token: enough for the latency of one, and no more than 16 registers hold."""


@dataclass(frozen=True)
class QuantiseShape:
    """Sizes of a call: token tiles, features of each token, and how the result lies for which instruction.

    ``served``: tokens of a tile that are quantised, whole vectors; the others become zeros. ``places``: of a table that says
    which feature lies at each; 0 where each lies at its own.
    """

    tiles: int
    features: int
    lines: Lines
    dot: str
    served: int = FEATURE_MAJOR.token_tile
    places: int = 0

    @classmethod
    def of(cls, tiles: int, features: int, read: Quantised, places: int = 0) -> Self:
        """Return the sizes of a call for whoever reads the result."""
        return cls(tiles, features, read.lines, read.dot, read.served, places)

    @property
    def written(self) -> tuple[int, int, int]:
        """Shape of the result."""
        return self.lines.shape(self.tiles, self.places or self.features)

    @property
    def parts(self) -> list[int]:
        """Which vectors of a line are quantised."""
        return self.lines.parts(self.tiles, self.served)

    @property
    def padded(self) -> int:
        """Token tiles of all lines."""
        return self.lines.count(self.tiles) * self.lines.tiles


def store_features(
    shape: QuantiseShape,
    y: tirx.Buffer,
    line: tirx.Var,
    unroll: int,
    number: Callable[[tirx.Expr, int], tirx.Expr],
    table: tirx.Buffer | None,
) -> None:
    """Emit the stores of all features of a line: ``number`` gives those of a part of it, as int32.

    As lines, several of an iteration, or as quads; in their order, or in that of a table.
    """
    lines, dot = shape.lines, DOT_PRODUCTS[shape.dot]
    step = COLUMNS if lines.quads else unroll

    def of_parts(place: tirx.Expr) -> list[tirx.Expr]:
        feature = place if table is None else table[place]
        nothing = tirx.Broadcast(tirx.const(0, "int32"), lines.lanes)
        return [number(feature, part) if part in shape.parts else nothing for part in range(PARTS)]

    with T.serial((shape.places or shape.features) // step) as f:
        features = [of_parts(f * step + i) for i in range(step)]
        if lines.quads:
            vectors = [dot.beside([parts[part] for parts in features]) for part in range(PARTS)]
        else:
            vectors = [dot.narrow(parts) for parts in features]
        for i, vector in enumerate(vectors):
            T.buffer_store(y, vector, [line, f * step + i, tirx.Ramp(0, 1, lines.tokens)])


def marked(func: tirx.PrimFunc, shape: QuantiseShape) -> tirx.PrimFunc:
    """Return a quantiser that says what it writes."""
    quads = {QUADS_ATTR: True} if shape.lines.quads else {}
    return func.with_attrs({SERVED_ATTR: shape.served} | quads | ({PLACES_ATTR: shape.places} if shape.places else {}))


@cache  # TVMScript is parsed anew on every call
def quantise(shape: QuantiseShape) -> tirx.PrimFunc:
    """Return the kernel x (tiles, features, 16) -> (lines (lines, features, tokens), scales (tiles, 16)).

    What fills up the last line is a copy of the last tile, or zeros where there is no other line. Where features lie as a table
    says it is the second argument, (places,).
    """
    lines, features, dot = shape.lines, shape.features, DOT_PRODUCTS[shape.dot]
    lanes, tile, real = lines.lanes, FEATURE_MAJOR.token_tile, REAL.dtype
    unroll = largest_divisor(features, UNROLLED)
    chains = min(CHAINS, unroll)
    least = tirx.const(int(np.float32(LEAST).view(np.int32)), "int32")

    def tokens(line: tirx.Var, part: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Return the tile of a part of a line, and its first token there."""
        first = line * lines.tokens + part * lanes
        return T.min(T.floordiv(first, tile), shape.tiles - 1), T.floormod(first, tile)

    def find_largest(x: tirx.Buffer, largest: tirx.Buffer, line: tirx.Var) -> None:
        """Keep the largest magnitudes of some features each, of all parts of a line.

        As integers, which order positive floats as they are, and NaN above them, so that it is not lost.
        """
        with T.serial(features // unroll) as f:
            for u in range(unroll):
                for part in shape.parts:
                    at, first = tokens(line, part)
                    with T.vectorized(lanes) as t:
                        here = u % chains, part * lanes + t
                        number = tirx.reinterpret("int32", T.fabs(x[at, f * unroll + u, first + t]))
                        T.buffer_store(largest, T.max(largest[here], number), here)

    def store_scales(largest: tirx.Buffer, inverse: tirx.Buffer, scales: tirx.Buffer, line: tirx.Var) -> None:
        for part in lines.parts(shape.tiles, tile):
            at, first = tokens(line, part)
            with T.vectorized(lanes) as t:
                most = largest[0, part * lanes + t]
                for chain in range(1, chains):
                    most = T.max(most, largest[chain, part * lanes + t])
                scale = tirx.reinterpret(real, T.max(most, least)) * REAL.const(1.0 / LARGEST)
                T.buffer_store(inverse, REAL.const(1.0) / scale, [part * lanes + t])
                T.buffer_store(scales, scale, [at, first + t])

    def narrow(x: tirx.Buffer, inverse: tirx.Buffer, y: tirx.Buffer, line: tirx.Var, table: tirx.Buffer | None) -> None:
        def number(feature: tirx.Expr, part: int) -> tirx.Expr:
            at, first = tokens(line, part)
            factor = tirx.BufferLoad(inverse, [tirx.Ramp(part * lanes, 1, lanes)])
            return dot.to_int(tirx.BufferLoad(x, [at, feature, tirx.Ramp(first, 1, lanes)]) * factor)

        store_features(shape, y, line, unroll, number, table)

    @T.inline
    def each_line(X: tirx.Buffer, Y: tirx.Buffer, scales: tirx.Buffer, table: tirx.Buffer | None) -> None:
        largest = T.sblock_alloc_buffer((chains, lines.tokens), "int32")
        inverse = T.sblock_alloc_buffer((lines.tokens,), real)
        for line in T.serial(lines.count(shape.tiles), annotations={TASKS_ATTR: 1}):
            for c in T.unroll(chains * PARTS):
                for t in T.vectorized(lanes):
                    largest[T.floordiv(c, PARTS), T.floormod(c, PARTS) * lanes + t] = 0
            find_largest(X, largest, line)
            store_scales(largest, inverse, scales, line)
            narrow(X, inverse, Y, line, table)

    @T.prim_func(s_tir=True)
    def quantise(x: T.handle, y: T.handle, s: T.handle) -> None:
        X = T.match_buffer(x, FEATURE_MAJOR.shape(shape.tiles, features), real)
        Y = T.match_buffer(y, shape.written, INT8.dtype)
        scales = T.match_buffer(s, (shape.tiles, tile), real)
        each_line(X, Y, scales, None)

    @T.prim_func(s_tir=True)
    def quantise_placed(x: T.handle, p: T.handle, y: T.handle, s: T.handle) -> None:
        X = T.match_buffer(x, FEATURE_MAJOR.shape(shape.tiles, features), real)
        table = T.match_buffer(p, (shape.places,), "int32")
        Y = T.match_buffer(y, shape.written, INT8.dtype)
        scales = T.match_buffer(s, (shape.tiles, tile), real)
        each_line(X, Y, scales, table)

    return marked(quantise_placed if shape.places else quantise, shape)
