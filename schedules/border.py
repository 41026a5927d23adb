"""Kernels at the border of the feature-major layout: (batch, length, features) <-> (tiles, features, token tile).

Every sequence of a batch is padded to whole tiles of its own; the lanes that pad it hold zeros.
"""

from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.layout import FeatureMajor
from rt3_tvm.schedules.loops import loop_of
from rt3_tvm.schedules.tasks import share_loop


def _sizes(layout: FeatureMajor, length: int) -> tuple[int, int, str, tirx.Expr]:
    """Return the tiles of a sequence, the tokens of a tile, the type of a number, and its zero."""
    return layout.tiles(length), layout.token_tile, layout.element.dtype, layout.element.const(0.0)


@cache  # TVMScript is parsed anew on every call
def to_feature_major(layout: FeatureMajor, batch: int, length: int, features: int) -> tirx.PrimFunc:
    """Return the kernel x (batch, length, features) -> y (batch * tiles, features, token tile)."""
    tiles, tile, dtype, zero = _sizes(layout, length)

    @T.prim_func(s_tir=True)
    def to_feature_major(x: T.handle, y: T.handle):
        X = T.match_buffer(x, (batch, length, features), dtype)
        Y = T.match_buffer(y, layout.shape(batch * tiles, features), dtype)
        for i, f, t in T.grid(batch * tiles, features, tile):
            with T.sblock("copy"):
                vi, vf, vt = T.axis.remap("SSS", [i, f, t])
                Y[vi, vf, vt] = T.if_then_else(
                    T.floormod(vi, tiles) * tile + vt < length,
                    X[T.floordiv(vi, tiles), T.min(T.floormod(vi, tiles) * tile + vt, length - 1), vf],
                    zero,
                )

    return to_feature_major


@cache  # TVMScript is parsed anew on every call
def from_feature_major(layout: FeatureMajor, batch: int, length: int, features: int) -> tirx.PrimFunc:
    """Return the kernel x (batch * tiles, features, token tile) -> y (batch, length, features)."""
    tiles, tile, dtype, _ = _sizes(layout, length)

    @T.prim_func(s_tir=True)
    def from_feature_major(x: T.handle, y: T.handle):
        X = T.match_buffer(x, layout.shape(batch * tiles, features), dtype)
        Y = T.match_buffer(y, (batch, length, features), dtype)
        for b, t, f in T.grid(batch, length, features):
            with T.sblock("copy"):
                vb, vt, vf = T.axis.remap("SSS", [b, t, f])
                Y[vb, vt, vf] = X[vb * tiles + T.floordiv(vt, tile), vf, T.floormod(vt, tile)]

    return from_feature_major


@cache  # TVMScript is parsed anew on every call
def embedding(layout: FeatureMajor, batch: int, length: int, rows: int, features: int, ids_dtype: str) -> tirx.PrimFunc:
    """Return the kernel (table (rows, features), ids (batch * length,)) -> y (batch * tiles, features, token tile)."""
    tiles, tile, dtype, zero = _sizes(layout, length)

    @T.prim_func(s_tir=True)
    def embedding(table: T.handle, i: T.handle, y: T.handle):
        W = T.match_buffer(table, (rows, features), dtype)
        ids = T.match_buffer(i, (batch * length,), ids_dtype)
        Y = T.match_buffer(y, layout.shape(batch * tiles, features), dtype)
        for i, f, t in T.grid(batch * tiles, features, tile):
            with T.sblock("copy"):
                vi, vf, vt = T.axis.remap("SSS", [i, f, t])
                Y[vi, vf, vt] = T.if_then_else(
                    T.floormod(vi, tiles) * tile + vt < length,
                    W[
                        ids[T.floordiv(vi, tiles) * length + T.min(T.floormod(vi, tiles) * tile + vt, length - 1)],
                        vf,
                    ],
                    zero,
                )

    return embedding


@cache  # TVMScript is parsed anew on every call
def pattern_embedding(
    layout: FeatureMajor,
    batch: int,
    length: int,
    rows: int,
    features: int,
    kept: int,
    group: int,
    dtypes: tuple[str, str],
) -> tirx.PrimFunc:
    """Return the kernel (values (rows, kept), columns (rows / group, kept), ids (batch * length,)) -> y like ``embedding``.

    ``dtypes``: of columns and ids. A column that pads its row comes with the value zero.
    """
    tiles, tile, dtype, zero = _sizes(layout, length)
    column_dtype, ids_dtype = dtypes

    def row(ids: tirx.Buffer, i: tirx.Var, t: tirx.Var) -> tirx.Expr:
        return T.Cast("int32", ids[T.floordiv(i, tiles) * length + T.floormod(i, tiles) * tile + t])

    def column(columns: tirx.Buffer, ids: tirx.Buffer, i: tirx.Var, t: tirx.Var, k: tirx.Var) -> tirx.Expr:
        return T.Cast("int32", columns[T.floordiv(row(ids, i, t), group), k])

    @T.prim_func(s_tir=True)
    def pattern_embedding(v: T.handle, c: T.handle, i: T.handle, y: T.handle):
        values = T.match_buffer(v, (rows, kept), dtype)
        columns = T.match_buffer(c, (rows // group, kept), column_dtype)
        ids = T.match_buffer(i, (batch * length,), ids_dtype)
        Y = T.match_buffer(y, layout.shape(batch * tiles, features), dtype)
        for i in range(batch * tiles):
            with T.sblock("tile"):
                vi = T.axis.opaque(batch * tiles, i)
                T.reads(values[0:rows, 0:kept], columns[0 : rows // group, 0:kept], ids[0 : batch * length])
                T.writes(Y[vi, 0:features, 0:tile])
                for f, t in T.grid(features, tile):
                    with T.sblock("zero"):
                        vf, vt = T.axis.remap("SS", [f, t])
                        Y[vi, vf, vt] = zero
                for t, k in T.grid(T.min(tile, length - T.floormod(vi, tiles) * tile), kept):
                    with T.sblock("scatter"):
                        vt = T.axis.opaque(tile, t)
                        vk = T.axis.opaque(kept, k)
                        T.reads(values[0:rows, 0:kept], columns[0 : rows // group, 0:kept], ids[0 : batch * length])
                        T.writes(Y[vi, 0:features, vt])
                        Y[vi, column(columns, ids, vi, vt, vk), vt] = (
                            Y[vi, column(columns, ids, vi, vt, vk), vt] + values[row(ids, vi, vt), vk]
                        )

    return pattern_embedding


def schedule_pattern_embedding(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors of zeros first; the rest is one store for each kept value."""
    sch = Schedule(func)
    sch.vectorize(sch.split(loop_of(sch, "zero", "t"), [None, lanes])[1])
    share_loop(sch, loop_of(sch, "tile", "i"))
    return sch.mod["main"]


def schedule_gather(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Read rows of the source in order: ``for i, f, t`` becomes ``for i, t, f`` with 4 features unrolled.

    The store is strided; the rows it comes from are read once, front to back.
    """
    sch = Schedule(func)
    i, f, t = (loop_of(sch, "copy", name) for name in "ift")
    outer, inner = sch.split(f, [None, _unrolled(int(sch.get(f).extent))])
    sch.reorder(i, t, outer, inner)
    sch.unroll(inner)
    share_loop(sch, i)
    return sch.mod["main"]


def schedule_scatter(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Write rows of the result in order, 4 features at a time."""
    sch = Schedule(func)
    b, t, f = (loop_of(sch, "copy", name) for name in "btf")
    share_loop(sch, sch.fuse(b, t))  # one sequence has as many tasks as it has tokens
    sch.unroll(sch.split(f, [None, _unrolled(int(sch.get(f).extent))])[1])
    return sch.mod["main"]


def _unrolled(features: int) -> int:
    """Return the features of an iteration: 4 loads in flight, where there are no fewer left over."""
    return 4 if features % 4 == 0 else 1
