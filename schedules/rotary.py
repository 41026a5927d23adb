"""Rotary positions in the feature-major layout: the halves of each head's features rotated by an angle per token.

Source: RoFormer, arXiv 2104.09864, in the form of Llama, where feature j pairs with j + dim / 2.
"""

from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.layout import FeatureMajor
from rt3_tvm.schedules.loops import loop_of
from rt3_tvm.schedules.tasks import share_loop


@cache  # TVMScript is parsed anew on every call
def rotary(layout: FeatureMajor, batch: int, length: int, heads: int, dim: int) -> tirx.PrimFunc:
    """Return the kernel (x (batch * tiles, heads * dim, 16), cos, sin (tiles, dim, 16)) -> y like x."""
    tiles, half, features = layout.tiles(length), dim // 2, heads * dim
    tile, dtype = layout.token_tile, layout.element.dtype

    @T.prim_func(s_tir=True)
    def rotary(x: T.handle, c: T.handle, s: T.handle, y: T.handle):
        X = T.match_buffer(x, layout.shape(batch * tiles, features), dtype)
        cos = T.match_buffer(c, layout.shape(tiles, dim), dtype)
        sin = T.match_buffer(s, layout.shape(tiles, dim), dtype)
        Y = T.match_buffer(y, layout.shape(batch * tiles, features), dtype)
        for i, h, j, t in T.grid(batch * tiles, heads, half, tile):
            with T.sblock("low"):
                vi, vh, vj, vt = T.axis.remap("SSSS", [i, h, j, t])
                Y[vi, vh * dim + vj, vt] = (
                    X[vi, vh * dim + vj, vt] * cos[T.floormod(vi, tiles), vj, vt]
                    - X[vi, vh * dim + vj + half, vt] * sin[T.floormod(vi, tiles), vj, vt]
                )
            with T.sblock("high"):
                vi, vh, vj, vt = T.axis.remap("SSSS", [i, h, j, t])
                Y[vi, vh * dim + vj + half, vt] = (
                    X[vi, vh * dim + vj + half, vt] * cos[T.floormod(vi, tiles), vj + half, vt]
                    + X[vi, vh * dim + vj, vt] * sin[T.floormod(vi, tiles), vj + half, vt]
                )

    return rotary


def rotary_flops(layout: FeatureMajor, batch: int, length: int, heads: int, dim: int) -> float:
    """Return the floating-point operations of a call: two products and a sum for each number."""
    return 3.0 * batch * layout.tiles(length) * layout.token_tile * heads * dim


def schedule_rotary(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over tokens."""
    sch = Schedule(func)
    # Both halves stand in one nest. Vectors stay a loop: nothing lives in registers from one to the next.
    sch.vectorize(sch.split(loop_of(sch, "low", "t"), [None, lanes])[1])
    share_loop(sch, loop_of(sch, "low", "i"))
    return sch.mod["main"]
