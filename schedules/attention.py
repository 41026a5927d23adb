"""Attention on feature-major activations, fused per head and query tile.

Q, K and V are (tiles, heads * dim, 16): a head's K is already packed as 16 keys per feature, the panel form that a matrix
product wants, so scores, softmax and context are all vectors over 16 queries. Only one (keys, 16) tile of scores exists.
"""

from functools import cache

from rt3_tvm.schedules.layout import tiles_of
from rt3_tvm.schedules.linear_decisions import TOKEN_TILE
from rt3_tvm.schedules.tasks import share_loop
from rt3_tvm.schedules.vector_math import exp
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

KEYS = 4
"""Keys of a register block of scores: 4 rows times 16 queries are the 8 accumulators of an AVX2 or NEON core."""
MASKED = -3.4e38
"""Score of the keys that only pad a tile."""


@cache  # TVMScript is parsed anew on every call
def attention(
    batch: int, length: int, heads: int, dim: int, scale: float, bias_shape: tuple[int, int, int, int] | None
) -> tirx.PrimFunc:
    """Return the kernel (q, k, v (batch * tiles, heads * dim, 16)[, bias]) -> y; two tiles (keys, 16) live on the stack.

    ``bias`` is added to the scores: (batch or 1, heads or 1, length or 1, length).
    """
    tiles = tiles_of(length)
    keys, features = tiles * TOKEN_TILE, heads * dim
    rows = next(r for r in (4, 3, 2, 1) if dim % r == 0)
    bb, bh, bq, bk = bias_shape or (1, 1, 1, 1)

    def biased(score: tirx.Expr, bias: tirx.Buffer, b: tirx.Var, h: tirx.Var, q: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
        score = score * tirx.const(scale, "float32")
        if bias_shape is not None:
            at = (
                b if bb > 1 else 0,
                h if bh > 1 else 0,
                tirx.min(q, length - 1) if bq > 1 else 0,
                tirx.min(k, length - 1) if bk > 1 else 0,
            )
            score = score + bias[at]
        return score if length == keys else tirx.Select(k < length, score, tirx.const(MASKED, "float32"))

    def weight(score: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
        return exp(score) if length == keys else tirx.Select(k < length, exp(score), tirx.const(0.0, "float32"))

    @T.prim_func(s_tir=True)
    def attention(q: T.handle, k: T.handle, v: T.handle, m: T.handle, y: T.handle):
        Q = T.match_buffer(q, (batch * tiles, features, TOKEN_TILE), "float32")
        K = T.match_buffer(k, (batch * tiles, features, TOKEN_TILE), "float32")
        V = T.match_buffer(v, (batch * tiles, features, TOKEN_TILE), "float32")
        bias = T.match_buffer(m, (bb, bh, bq, bk), "float32")
        Y = T.match_buffer(y, (batch * tiles, features, TOKEN_TILE), "float32")
        for h, b, i in T.grid(heads, batch, tiles):
            with T.sblock("tile"):
                vh, vb, vi = T.axis.remap("SSS", [h, b, i])
                T.reads(
                    Q[0 : batch * tiles, 0:features, 0:TOKEN_TILE],
                    K[0 : batch * tiles, 0:features, 0:TOKEN_TILE],
                    V[0 : batch * tiles, 0:features, 0:TOKEN_TILE],
                    bias[0:bb, 0:bh, 0:bq, 0:bk],
                )
                T.writes(Y[0 : batch * tiles, 0:features, 0:TOKEN_TILE])
                S = T.sblock_alloc_buffer((keys, TOKEN_TILE), "float32")
                P = T.sblock_alloc_buffer((keys, TOKEN_TILE), "float32")
                largest = T.sblock_alloc_buffer((TOKEN_TILE,), "float32")
                total = T.sblock_alloc_buffer((TOKEN_TILE,), "float32")
                for kt, kb in T.grid(tiles, TOKEN_TILE // KEYS):
                    with T.sblock("keys"):
                        vkt, vkb = T.axis.remap("SS", [kt, kb])
                        T.reads(
                            Q[0 : batch * tiles, 0:features, 0:TOKEN_TILE],
                            K[0 : batch * tiles, 0:features, 0:TOKEN_TILE],
                            bias[0:bb, 0:bh, 0:bq, 0:bk],
                        )
                        T.writes(S[vkt * TOKEN_TILE + vkb * KEYS : vkt * TOKEN_TILE + vkb * KEYS + KEYS, 0:TOKEN_TILE])
                        acc = T.sblock_alloc_buffer((KEYS, TOKEN_TILE), "float32")
                        for d, j, t in T.grid(dim, KEYS, TOKEN_TILE):
                            with T.sblock("score"):
                                vd = T.axis.reduce(dim, d)
                                vj, vt = T.axis.remap("SS", [j, t])
                                with T.init():
                                    acc[vj, vt] = T.float32(0)
                                acc[vj, vt] = (
                                    acc[vj, vt]
                                    + K[vb * tiles + vkt, vh * dim + vd, vkb * KEYS + vj]
                                    * Q[vb * tiles + vi, vh * dim + vd, vt]
                                )
                        for j, t in T.grid(KEYS, TOKEN_TILE):
                            with T.sblock("bias"):
                                vj, vt = T.axis.remap("SS", [j, t])
                                S[vkt * TOKEN_TILE + vkb * KEYS + vj, vt] = biased(
                                    acc[vj, vt], bias, vb, vh, vi * TOKEN_TILE + vt, vkt * TOKEN_TILE + vkb * KEYS + vj
                                )
                for c, t in T.grid(keys, TOKEN_TILE):
                    with T.sblock("max"):
                        vc, vt = T.axis.remap("RS", [c, t])
                        with T.init():
                            largest[vt] = T.float32(MASKED)
                        largest[vt] = T.max(largest[vt], S[vc, vt])
                for c, t in T.grid(keys, TOKEN_TILE):
                    with T.sblock("exp"):
                        vc, vt = T.axis.remap("SS", [c, t])
                        P[vc, vt] = weight(S[vc, vt] - largest[vt], vc)
                for c, t in T.grid(keys, TOKEN_TILE):
                    with T.sblock("sum"):
                        vc, vt = T.axis.remap("RS", [c, t])
                        with T.init():
                            total[vt] = T.float32(0)
                        total[vt] = total[vt] + P[vc, vt]
                for db in range(dim // rows):
                    with T.sblock("features"):
                        vdb = T.axis.spatial(dim // rows, db)
                        T.reads(
                            V[0 : batch * tiles, 0:features, 0:TOKEN_TILE], P[0:keys, 0:TOKEN_TILE], total[0:TOKEN_TILE]
                        )
                        T.writes(Y[vb * tiles + vi, vh * dim + vdb * rows : vh * dim + vdb * rows + rows, 0:TOKEN_TILE])
                        mix = T.sblock_alloc_buffer((rows, TOKEN_TILE), "float32")
                        for kt, kl, r, t in T.grid(tiles, TOKEN_TILE, rows, TOKEN_TILE):
                            with T.sblock("context"):
                                vkt, vkl, vr, vt = T.axis.remap("RRSS", [kt, kl, r, t])
                                with T.init():
                                    mix[vr, vt] = T.float32(0)
                                mix[vr, vt] = (
                                    mix[vr, vt]
                                    + V[vb * tiles + vkt, vh * dim + vdb * rows + vr, vkl]
                                    * P[vkt * TOKEN_TILE + vkl, vt]
                                )
                        for r, t in T.grid(rows, TOKEN_TILE):
                            with T.sblock("divide"):
                                vr, vt = T.axis.remap("SS", [r, t])
                                Y[vb * tiles + vi, vh * dim + vdb * rows + vr, vt] = mix[vr, vt] / total[vt]

    return attention


def schedule_attention(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over queries everywhere; score and context blocks of 4 rows in registers."""
    sch = Schedule(func)

    def vectorise(name: str, unrolled: int) -> None:
        loops = sch.get_loops(sch.get_sblock(name))
        t0, t1 = sch.split(loops[-1], [None, lanes])
        sch.vectorize(t1)
        for loop in (*loops[len(loops) - 1 - unrolled : -1], t0):
            sch.unroll(loop)

    for name, unrolled in (
        ("score", 1),
        ("bias", 1),
        ("context", 1),
        ("divide", 1),
        ("max", 0),
        ("sum", 0),
        ("exp", 0),
    ):
        vectorise(name, unrolled)
    for name, depth in (("score", 4), ("max", 3), ("sum", 3), ("context", 5)):
        block = sch.get_sblock(name)
        init = sch.decompose_reduction(block, sch.get_loops(block)[-depth])
        for loop in sch.get_loops(init)[-(2 if name in ("max", "sum") else 3) : -1]:
            sch.unroll(loop)
    share_loop(sch, sch.get_loops(sch.get_sblock("tile"))[0])  # heads
    return sch.mod["main"]
