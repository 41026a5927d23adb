"""LayerNorm and RMSNorm over features in the feature-major layout, with an optional residual added first.

Statistics of 16 tokens are 16 lanes of the same vectors, so nothing is ever reduced across lanes.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL, FeatureMajor
from rt3_tvm.schedules.loops import begin_before, loop_of, vectorise
from rt3_tvm.schedules.tasks import share_loop

PARTIAL_SUMS = 4
"""Independent sums per lane, to hide the latency of additions."""


@dataclass(frozen=True)
class NormShape:
    """What a norm does: ``centred`` subtracts the mean (LayerNorm), else it does not (RMSNorm).

    ``residual`` adds a second tensor first; ``keep_sum`` returns that sum too, for the next residual.
    """

    tiles: int
    features: int
    epsilon: float
    centred: bool = True
    residual: bool = False
    keep_sum: bool = False
    layout: FeatureMajor = FEATURE_MAJOR

    @property
    def flops(self) -> float:
        """Floating-point operations on the numbers of a tensor: sum, mean, square and its sum, scale, gamma, beta, residual.

        Both passes add the residual anew, and a third where there is a mean.
        """
        each = (8 if self.centred else 4) + self.residual * (3 if self.centred else 2) + self.keep_sum
        return float(each * self.tiles * self.features * self.layout.token_tile)


@cache  # TVMScript is parsed anew on every call
def layer_norm(shape: NormShape) -> tirx.PrimFunc:
    """Return the kernel (x, residual (tiles, features, 16), gamma, beta (features,)) -> y[, sum]; two passes over x.

    Without ``residual`` the second argument is not read, without ``centred`` beta is not; callers pass anything of the shape.
    """
    tiles, features, epsilon, residual, centred, keep_sum = (
        shape.tiles, shape.features, shape.epsilon, shape.residual, shape.centred, shape.keep_sum,
    )  # fmt: skip
    layout, tile, dtype, real = shape.layout, shape.layout.token_tile, shape.layout.element.dtype, REAL.dtype
    zero, one = REAL.const(0.0), REAL.const(1.0)
    parts = PARTIAL_SUMS if features % PARTIAL_SUMS == 0 else 1
    chunk, inverse, small = features // parts, REAL.const(1.0 / features), REAL.const(epsilon)

    def add(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        return a + b if residual else a

    def centre(value: tirx.Expr, mean: tirx.Expr) -> tirx.Expr:
        return value - mean if centred else value

    def shift(value: tirx.Expr, beta: tirx.Expr) -> tirx.Expr:
        return value + beta if centred else value

    def summed(partial: tirx.Buffer, t: tirx.Var) -> tirx.Expr:
        result = partial[0, t]
        for p in range(1, parts):
            result = result + partial[p, t]
        return result

    @T.prim_func(s_tir=True)
    def layer_norm(x: T.handle, r: T.handle, g: T.handle, b: T.handle, y: T.handle, z: T.handle):
        X = T.match_buffer(x, layout.shape(tiles, features), dtype)
        R = T.match_buffer(r, layout.shape(tiles, features), dtype)
        gamma = T.match_buffer(g, (features,), real)
        beta = T.match_buffer(b, (features,), real)
        Y = T.match_buffer(y, layout.shape(tiles, features), dtype)
        Z = T.match_buffer(z, layout.shape(tiles, features), dtype)
        for i in range(tiles):
            with T.sblock("tile"):
                vi = T.axis.spatial(tiles, i)
                T.reads(
                    X[vi, 0:features, 0:tile],
                    R[vi, 0:features, 0:tile],
                    gamma[0:features],
                    beta[0:features],
                )
                if keep_sum:
                    T.writes(Y[vi, 0:features, 0:tile], Z[vi, 0:features, 0:tile])
                else:
                    T.writes(Y[vi, 0:features, 0:tile])
                total = T.sblock_alloc_buffer((parts, tile), real)
                square = T.sblock_alloc_buffer((parts, tile), real)
                mean = T.sblock_alloc_buffer((tile,), real)
                scale = T.sblock_alloc_buffer((tile,), real)
                if centred:
                    for c, p, t in T.grid(chunk, parts, tile):
                        with T.sblock("sum"):
                            vc = T.axis.reduce(chunk, c)
                            vp, vt = T.axis.remap("SS", [p, t])
                            with T.init():
                                total[vp, vt] = zero
                            total[vp, vt] = total[vp, vt] + add(X[vi, vc * parts + vp, vt], R[vi, vc * parts + vp, vt])
                    for t in range(tile):
                        with T.sblock("mean"):
                            vt = T.axis.spatial(tile, t)
                            mean[vt] = summed(total, vt) * inverse
                for c, p, t in T.grid(chunk, parts, tile):
                    with T.sblock("square"):
                        vc = T.axis.reduce(chunk, c)
                        vp, vt = T.axis.remap("SS", [p, t])
                        with T.init():
                            square[vp, vt] = zero
                        square[vp, vt] = square[vp, vt] + centre(
                            add(X[vi, vc * parts + vp, vt], R[vi, vc * parts + vp, vt]), mean[vt]
                        ) * centre(add(X[vi, vc * parts + vp, vt], R[vi, vc * parts + vp, vt]), mean[vt])
                for t in range(tile):
                    with T.sblock("scale"):
                        vt = T.axis.spatial(tile, t)
                        scale[vt] = one / T.sqrt(summed(square, vt) * inverse + small)
                for f, t in T.grid(features, tile):
                    with T.sblock("normalise"):
                        vf, vt = T.axis.remap("SS", [f, t])
                        Y[vi, vf, vt] = shift(
                            centre(add(X[vi, vf, vt], R[vi, vf, vt]), mean[vt]) * scale[vt] * gamma[vf], beta[vf]
                        )
                if keep_sum:
                    for f, t in T.grid(features, tile):
                        with T.sblock("keep"):
                            vf, vt = T.axis.remap("SS", [f, t])
                            Z[vi, vf, vt] = X[vi, vf, vt] + R[vi, vf, vt]

    return layer_norm if keep_sum else tirx.PrimFunc(layer_norm.params[:-1], layer_norm.body, attrs=layer_norm.attrs)


def schedule_layer_norm(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectorise every loop over tokens; keep the partial sums in registers."""
    sch = Schedule(func)
    blocks = [str(sch.get(block).name_hint) for block in sch.get_child_blocks(sch.get_sblock("tile"))]
    for block in blocks:
        summed = block in ("sum", "square")
        # Features of a tile are vectors of tokens beside each other: no pass reduces across lanes.
        vectorise(sch, block, "t", lanes, registers=("p",) if summed else ())
        if summed:
            begin_before(sch, block, "c", registers=("p", "t_0"))
    share_loop(sch, loop_of(sch, "tile", "i"))
    return sch.mod["main"]
