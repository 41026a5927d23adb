"""``convert``: activations of the real layout in that of another element type, for the linear layers that multiply in it.

A linear layer reads X many times and is faster in narrow numbers; what is between linear layers is float32. So a tensor is
brought into the layout of an element type once, for all layers that read it.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.layout import FeatureMajor
from rt3_tvm.schedules.loops import loop_of
from rt3_tvm.schedules.tasks import share_loop


@dataclass(frozen=True)
class ConversionShape:
    """A tensor of so many tiles and features in one layout, and the layout that it is brought into; no tokens are added."""

    source: FeatureMajor
    target: FeatureMajor
    tiles: int
    features: int

    def __post_init__(self) -> None:
        tokens = self.tiles * self.source.token_tile
        assert tokens % self.target.token_tile == 0, f"{tokens} tokens in tiles of {self.target.token_tile}"

    @property
    def target_tiles(self) -> int:
        """Tiles of the result."""
        return self.tiles * self.source.token_tile // self.target.token_tile

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.target.shape(self.target_tiles, self.features)


@cache  # TVMScript is parsed anew on every call
def convert(shape: ConversionShape) -> tirx.PrimFunc:
    """Return the kernel x (tiles, features, token tile) -> y, the same numbers rounded to nearest, ties to even."""
    source, target = shape.source, shape.target
    of, to = source.token_tile, target.token_tile
    assert source.interleave == target.interleave == 1

    @T.prim_func(s_tir=True)
    def convert(x: T.handle, y: T.handle):
        X = T.match_buffer(x, source.shape(shape.tiles, shape.features), source.element.dtype)
        Y = T.match_buffer(y, shape.target_shape, target.element.dtype)
        for i, f, t in T.grid(shape.target_tiles, shape.features, to):
            with T.sblock("convert"):
                vi, vf, vt = T.axis.remap("SSS", [i, f, t])
                Y[vi, vf, vt] = T.Cast(
                    target.element.dtype, X[T.floordiv(vi * to + vt, of), vf, T.floormod(vi * to + vt, of)]
                )

    return convert


def schedule_convert(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Return the scheduled kernel: a line of the result is whole vectors, none of which crosses a line of X."""
    sch = Schedule(func)
    vectors, vector = sch.split(loop_of(sch, "convert", "t"), [None, lanes])
    sch.vectorize(vector)
    sch.unroll(vectors)
    share_loop(sch, loop_of(sch, "convert", "f"))
    return sch.mod["main"]
