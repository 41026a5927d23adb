"""LayerNorm and RMSNorm over features in the feature-major layout, with an optional residual added first.

Statistics of 16 tokens are 16 lanes of the same vectors, so nothing is ever reduced across lanes.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.linear_decisions import TOKEN_TILE
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


@cache  # TVMScript is parsed anew on every call
def layer_norm(shape: NormShape) -> tirx.PrimFunc:
    """Return the kernel (x, residual (tiles, features, 16), gamma, beta (features,)) -> y[, sum]; two passes over x.

    Without ``residual`` the second argument is not read, without ``centred`` beta is not; callers pass anything of the shape.
    """
    tiles, features, epsilon, residual, centred, keep_sum = (
        shape.tiles, shape.features, shape.epsilon, shape.residual, shape.centred, shape.keep_sum,
    )  # fmt: skip
    parts = PARTIAL_SUMS if features % PARTIAL_SUMS == 0 else 1
    chunk, inverse = features // parts, 1.0 / features

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
        X = T.match_buffer(x, (tiles, features, TOKEN_TILE), "float32")
        R = T.match_buffer(r, (tiles, features, TOKEN_TILE), "float32")
        gamma = T.match_buffer(g, (features,), "float32")
        beta = T.match_buffer(b, (features,), "float32")
        Y = T.match_buffer(y, (tiles, features, TOKEN_TILE), "float32")
        Z = T.match_buffer(z, (tiles, features, TOKEN_TILE), "float32")
        for i in range(tiles):
            with T.sblock("tile"):
                vi = T.axis.spatial(tiles, i)
                T.reads(
                    X[vi, 0:features, 0:TOKEN_TILE],
                    R[vi, 0:features, 0:TOKEN_TILE],
                    gamma[0:features],
                    beta[0:features],
                )
                if keep_sum:
                    T.writes(Y[vi, 0:features, 0:TOKEN_TILE], Z[vi, 0:features, 0:TOKEN_TILE])
                else:
                    T.writes(Y[vi, 0:features, 0:TOKEN_TILE])
                total = T.sblock_alloc_buffer((parts, TOKEN_TILE), "float32")
                square = T.sblock_alloc_buffer((parts, TOKEN_TILE), "float32")
                mean = T.sblock_alloc_buffer((TOKEN_TILE,), "float32")
                scale = T.sblock_alloc_buffer((TOKEN_TILE,), "float32")
                if centred:
                    for c, p, t in T.grid(chunk, parts, TOKEN_TILE):
                        with T.sblock("sum"):
                            vc = T.axis.reduce(chunk, c)
                            vp, vt = T.axis.remap("SS", [p, t])
                            with T.init():
                                total[vp, vt] = T.float32(0)
                            total[vp, vt] = total[vp, vt] + add(X[vi, vc * parts + vp, vt], R[vi, vc * parts + vp, vt])
                    for t in range(TOKEN_TILE):
                        with T.sblock("mean"):
                            vt = T.axis.spatial(TOKEN_TILE, t)
                            mean[vt] = summed(total, vt) * T.float32(inverse)
                for c, p, t in T.grid(chunk, parts, TOKEN_TILE):
                    with T.sblock("square"):
                        vc = T.axis.reduce(chunk, c)
                        vp, vt = T.axis.remap("SS", [p, t])
                        with T.init():
                            square[vp, vt] = T.float32(0)
                        square[vp, vt] = square[vp, vt] + centre(
                            add(X[vi, vc * parts + vp, vt], R[vi, vc * parts + vp, vt]), mean[vt]
                        ) * centre(add(X[vi, vc * parts + vp, vt], R[vi, vc * parts + vp, vt]), mean[vt])
                for t in range(TOKEN_TILE):
                    with T.sblock("scale"):
                        vt = T.axis.spatial(TOKEN_TILE, t)
                        scale[vt] = T.float32(1) / T.sqrt(summed(square, vt) * T.float32(inverse) + T.float32(epsilon))
                for f, t in T.grid(features, TOKEN_TILE):
                    with T.sblock("normalise"):
                        vf, vt = T.axis.remap("SS", [f, t])
                        Y[vi, vf, vt] = shift(
                            centre(add(X[vi, vf, vt], R[vi, vf, vt]), mean[vt]) * scale[vt] * gamma[vf], beta[vf]
                        )
                if keep_sum:
                    for f, t in T.grid(features, TOKEN_TILE):
                        with T.sblock("keep"):
                            vf, vt = T.axis.remap("SS", [f, t])
                            Z[vi, vf, vt] = X[vi, vf, vt] + R[vi, vf, vt]

    return layer_norm if keep_sum else tirx.PrimFunc(layer_norm.params[:-1], layer_norm.body, attrs=layer_norm.attrs)


def schedule_layer_norm(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectorise every loop over tokens; keep the partial sums in registers."""
    sch = Schedule(func)
    blocks = {str(sch.get(b).name_hint): b for b in sch.get_child_blocks(sch.get_sblock("tile"))}
    for name, block in blocks.items():
        loops = sch.get_loops(block)
        t0, t1 = sch.split(loops[-1], [None, lanes])
        sch.vectorize(t1)
        sch.unroll(t0)
        if name in ("sum", "square"):
            sch.unroll(loops[-2])
            init = sch.decompose_reduction(block, loops[-3])
            for loop in sch.get_loops(init)[-3:-1]:
                sch.unroll(loop)
    share_loop(sch, sch.get_loops(sch.get_sblock("tile"))[0])
    return sch.mod["main"]
