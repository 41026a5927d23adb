"""Kernels at the border of the feature-major layout: (batch, length, features) <-> (tiles, features, TOKEN_TILE).

Every sequence of a batch is padded to whole tiles of its own; the lanes that pad it hold zeros.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.linear_decisions import TOKEN_TILE
from rt3_tvm.schedules.tasks import share_loop


def tiles_of(length: int) -> int:
    """Return the token tiles that hold ``length`` tokens."""
    return -(-length // TOKEN_TILE)


@dataclass(frozen=True)
class ElementType:
    """What a kernel multiplies: TVM's name of it, and the short one in names of kernels."""

    dtype: str
    short: str


FLOAT32 = ElementType("float32", "f32")
ELEMENT_TYPES = {element.dtype: element for element in (FLOAT32,)}


def element_type(dtype: str) -> ElementType:
    """Return the element type of TVM's name for it."""
    return ELEMENT_TYPES[dtype]


@cache  # TVMScript is parsed anew on every call
def to_feature_major(batch: int, length: int, features: int) -> tirx.PrimFunc:
    """Return the kernel x (batch, length, features) -> y (batch * tiles, features, 16)."""
    tiles = tiles_of(length)

    @T.prim_func(s_tir=True)
    def to_feature_major(x: T.handle, y: T.handle):
        X = T.match_buffer(x, (batch, length, features), "float32")
        Y = T.match_buffer(y, (batch * tiles, features, TOKEN_TILE), "float32")
        for i, f, t in T.grid(batch * tiles, features, TOKEN_TILE):
            with T.sblock("copy"):
                vi, vf, vt = T.axis.remap("SSS", [i, f, t])
                Y[vi, vf, vt] = T.if_then_else(
                    T.floormod(vi, tiles) * TOKEN_TILE + vt < length,
                    X[T.floordiv(vi, tiles), T.min(T.floormod(vi, tiles) * TOKEN_TILE + vt, length - 1), vf],
                    T.float32(0),
                )

    return to_feature_major


@cache  # TVMScript is parsed anew on every call
def from_feature_major(batch: int, length: int, features: int) -> tirx.PrimFunc:
    """Return the kernel x (batch * tiles, features, 16) -> y (batch, length, features)."""
    tiles = tiles_of(length)

    @T.prim_func(s_tir=True)
    def from_feature_major(x: T.handle, y: T.handle):
        X = T.match_buffer(x, (batch * tiles, features, TOKEN_TILE), "float32")
        Y = T.match_buffer(y, (batch, length, features), "float32")
        for b, t, f in T.grid(batch, length, features):
            with T.sblock("copy"):
                vb, vt, vf = T.axis.remap("SSS", [b, t, f])
                Y[vb, vt, vf] = X[vb * tiles + T.floordiv(vt, TOKEN_TILE), vf, T.floormod(vt, TOKEN_TILE)]

    return from_feature_major


@cache  # TVMScript is parsed anew on every call
def embedding(batch: int, length: int, rows: int, features: int, ids_dtype: str) -> tirx.PrimFunc:
    """Return the kernel (table (rows, features), ids (batch * length,)) -> y (batch * tiles, features, 16)."""
    tiles = tiles_of(length)

    @T.prim_func(s_tir=True)
    def embedding(table: T.handle, i: T.handle, y: T.handle):
        W = T.match_buffer(table, (rows, features), "float32")
        ids = T.match_buffer(i, (batch * length,), ids_dtype)
        Y = T.match_buffer(y, (batch * tiles, features, TOKEN_TILE), "float32")
        for i, f, t in T.grid(batch * tiles, features, TOKEN_TILE):
            with T.sblock("copy"):
                vi, vf, vt = T.axis.remap("SSS", [i, f, t])
                Y[vi, vf, vt] = T.if_then_else(
                    T.floormod(vi, tiles) * TOKEN_TILE + vt < length,
                    W[
                        ids[
                            T.floordiv(vi, tiles) * length + T.min(T.floormod(vi, tiles) * TOKEN_TILE + vt, length - 1)
                        ],
                        vf,
                    ],
                    T.float32(0),
                )

    return embedding


@cache  # TVMScript is parsed anew on every call
def pattern_embedding(
    batch: int, length: int, rows: int, features: int, kept: int, group: int, dtypes: tuple[str, str]
) -> tirx.PrimFunc:
    """Return the kernel (values (rows, kept), columns (rows / group, kept), ids (batch * length,)) -> y like ``embedding``.

    ``dtypes``: of columns and ids. A column that pads its row comes with the value zero.
    """
    tiles = tiles_of(length)
    column_dtype, ids_dtype = dtypes

    def row(ids: tirx.Buffer, i: tirx.Var, t: tirx.Var) -> tirx.Expr:
        return T.Cast("int32", ids[T.floordiv(i, tiles) * length + T.floormod(i, tiles) * TOKEN_TILE + t])

    def column(columns: tirx.Buffer, ids: tirx.Buffer, i: tirx.Var, t: tirx.Var, k: tirx.Var) -> tirx.Expr:
        return T.Cast("int32", columns[T.floordiv(row(ids, i, t), group), k])

    @T.prim_func(s_tir=True)
    def pattern_embedding(v: T.handle, c: T.handle, i: T.handle, y: T.handle):
        values = T.match_buffer(v, (rows, kept), "float32")
        columns = T.match_buffer(c, (rows // group, kept), column_dtype)
        ids = T.match_buffer(i, (batch * length,), ids_dtype)
        Y = T.match_buffer(y, (batch * tiles, features, TOKEN_TILE), "float32")
        for i in range(batch * tiles):
            with T.sblock("tile"):
                vi = T.axis.opaque(batch * tiles, i)
                T.reads(values[0:rows, 0:kept], columns[0 : rows // group, 0:kept], ids[0 : batch * length])
                T.writes(Y[vi, 0:features, 0:TOKEN_TILE])
                for f, t in T.grid(features, TOKEN_TILE):
                    with T.sblock("zero"):
                        vf, vt = T.axis.remap("SS", [f, t])
                        Y[vi, vf, vt] = T.float32(0)
                for t, k in T.grid(T.min(TOKEN_TILE, length - T.floormod(vi, tiles) * TOKEN_TILE), kept):
                    with T.sblock("scatter"):
                        vt = T.axis.opaque(TOKEN_TILE, t)
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
    t = sch.get_loops(sch.get_sblock("zero"))[-1]
    sch.vectorize(sch.split(t, [None, lanes])[1])
    share_loop(sch, sch.get_loops(sch.get_sblock("tile"))[0])
    return sch.mod["main"]


def schedule_gather(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Read rows of the source in order: ``for i, f, t`` becomes ``for i, t, f`` with 4 features unrolled.

    The store is strided; the rows it comes from are read once, front to back.
    """
    sch = Schedule(func)
    i, f, t = sch.get_loops(sch.get_sblock("copy"))
    features = int(sch.get(f).extent)
    unroll = 4 if features % 4 == 0 else 1
    f0, f1 = sch.split(f, [None, unroll])
    sch.reorder(i, t, f0, f1)
    sch.unroll(f1)
    share_loop(sch, i)
    return sch.mod["main"]


def schedule_scatter(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Write rows of the result in order, 4 features at a time."""
    sch = Schedule(func)
    b, t, f = sch.get_loops(sch.get_sblock("copy"))
    share_loop(sch, sch.fuse(b, t))
    unroll = 4 if int(sch.get(f).extent) % 4 == 0 else 1
    sch.unroll(sch.split(f, [None, unroll])[1])
    return sch.mod["main"]
