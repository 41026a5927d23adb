"""Attention on feature-major activations, fused per head and query tile.

Q, K and V are (tiles, heads * dim, 16): a head's K is already packed as 16 keys per feature, the panel form that a matrix
product wants, so scores, softmax and context are all vectors over 16 queries. Only one (keys, 16) tile of scores exists.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import STACK_BYTES, CpuShape
from rt3_tvm.schedules.layout import tiles_of
from rt3_tvm.schedules.linear_decisions import TOKEN_TILE, largest_divisor
from rt3_tvm.schedules.tasks import share_loop
from rt3_tvm.schedules.vector_math import exp

MASKED = -3.4e38
"""Score of the keys that only pad a tile."""


MAX_LENGTH = STACK_BYTES // (4 * TOKEN_TILE)
"""Tokens whose scores fit the stack of a thread: all keys of 16 queries."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of attention: ``kv_heads`` divides ``heads`` (grouped queries); ``causal`` hides later keys.

    ``bias`` is the shape of what is added to the scores: (batch or 1, heads or 1, length or 1, length); None adds nothing.
    """

    batch: int
    length: int
    heads: int
    dim: int
    scale: float
    bias: tuple[int, int, int, int] | None = None
    kv_heads: int = 0
    causal: bool = False


def register_rows(cpu: CpuShape) -> int:
    """Return the rows times 16 queries that fill the accumulators: 16 where there are 32 registers, else 8."""
    return (16 if cpu.registers > 16 else 8) * min(cpu.lanes, TOKEN_TILE) // TOKEN_TILE


@cache  # TVMScript is parsed anew on every call
def attention(shape: AttentionShape, register_rows: int = 4) -> tirx.PrimFunc:
    """Return the kernel (q (batch * tiles, heads * dim, 16), k, v (.., kv_heads * dim, 16), bias) -> y like q.

    Two tiles (keys, 16), scores and weights, live on the stack. ``register_rows``: keys of a register block of scores, and
    the most features of one of the context.
    """
    batch, length, heads, dim, scale, causal = (
        shape.batch, shape.length, shape.heads, shape.dim, shape.scale, shape.causal,
    )  # fmt: skip
    tiles = tiles_of(length)
    keys, features = tiles * TOKEN_TILE, heads * dim
    kv_heads = shape.kv_heads or heads
    kv_features, share = kv_heads * dim, heads // kv_heads
    block = largest_divisor(TOKEN_TILE, register_rows)
    rows = largest_divisor(dim, register_rows)
    bias_shape = shape.bias
    bb, bh, bq, bk = bias_shape or (1, 1, 1, 1)
    # A tile of queries sees no key of a later tile.
    visible = (lambda i: i + 1) if causal else (lambda i: tiles)

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
        hidden = tirx.const(MASKED, "float32")
        if length != keys:
            score = tirx.Select(k < length, score, hidden)
        return tirx.Select(k <= q, score, hidden) if causal else score

    def weight(score: tirx.Expr, q: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
        result = exp(score)
        if length != keys:
            result = tirx.Select(k < length, result, tirx.const(0.0, "float32"))
        return tirx.Select(k <= q, result, tirx.const(0.0, "float32")) if causal else result

    @T.prim_func(s_tir=True)
    def attention(q: T.handle, k: T.handle, v: T.handle, m: T.handle, y: T.handle):
        Q = T.match_buffer(q, (batch * tiles, features, TOKEN_TILE), "float32")
        K = T.match_buffer(k, (batch * tiles, kv_features, TOKEN_TILE), "float32")
        V = T.match_buffer(v, (batch * tiles, kv_features, TOKEN_TILE), "float32")
        bias = T.match_buffer(m, (bb, bh, bq, bk), "float32")
        Y = T.match_buffer(y, (batch * tiles, features, TOKEN_TILE), "float32")
        for h, b, i in T.grid(heads, batch, tiles):
            with T.sblock("tile"):
                vh, vb, vi = T.axis.remap("SSS", [h, b, i])
                T.reads(
                    Q[0 : batch * tiles, 0:features, 0:TOKEN_TILE],
                    K[0 : batch * tiles, 0:kv_features, 0:TOKEN_TILE],
                    V[0 : batch * tiles, 0:kv_features, 0:TOKEN_TILE],
                    bias[0:bb, 0:bh, 0:bq, 0:bk],
                )
                T.writes(Y[0 : batch * tiles, 0:features, 0:TOKEN_TILE])
                S = T.sblock_alloc_buffer((keys, TOKEN_TILE), "float32")
                P = T.sblock_alloc_buffer((keys, TOKEN_TILE), "float32")
                largest = T.sblock_alloc_buffer((TOKEN_TILE,), "float32")
                total = T.sblock_alloc_buffer((TOKEN_TILE,), "float32")
                for kt, kb in T.grid(visible(vi), TOKEN_TILE // block):
                    with T.sblock("keys"):
                        vkt, vkb = T.axis.remap("SS", [kt, kb])
                        T.reads(
                            Q[0 : batch * tiles, 0:features, 0:TOKEN_TILE],
                            K[0 : batch * tiles, 0:kv_features, 0:TOKEN_TILE],
                            bias[0:bb, 0:bh, 0:bq, 0:bk],
                        )
                        T.writes(
                            S[vkt * TOKEN_TILE + vkb * block : vkt * TOKEN_TILE + vkb * block + block, 0:TOKEN_TILE]
                        )
                        acc = T.sblock_alloc_buffer((block, TOKEN_TILE), "float32")
                        for d, j, t in T.grid(dim, block, TOKEN_TILE):
                            with T.sblock("score"):
                                vd = T.axis.reduce(dim, d)
                                vj, vt = T.axis.remap("SS", [j, t])
                                with T.init():
                                    acc[vj, vt] = T.float32(0)
                                acc[vj, vt] = (
                                    acc[vj, vt]
                                    + K[vb * tiles + vkt, T.floordiv(vh, share) * dim + vd, vkb * block + vj]
                                    * Q[vb * tiles + vi, vh * dim + vd, vt]
                                )
                        for j, t in T.grid(block, TOKEN_TILE):
                            with T.sblock("bias"):
                                vj, vt = T.axis.remap("SS", [j, t])
                                S[vkt * TOKEN_TILE + vkb * block + vj, vt] = biased(
                                    acc[vj, vt], bias, vb, vh, vi * TOKEN_TILE + vt, vkt * TOKEN_TILE + vkb * block + vj
                                )
                for c, t in T.grid(visible(vi) * TOKEN_TILE, TOKEN_TILE):
                    with T.sblock("max"):
                        vc, vt = T.axis.remap("RS", [c, t])
                        with T.init():
                            largest[vt] = T.float32(MASKED)
                        largest[vt] = T.max(largest[vt], S[vc, vt])
                for c, t in T.grid(visible(vi) * TOKEN_TILE, TOKEN_TILE):
                    with T.sblock("exp"):
                        vc, vt = T.axis.remap("SS", [c, t])
                        P[vc, vt] = weight(S[vc, vt] - largest[vt], vi * TOKEN_TILE + vt, vc)
                for c, t in T.grid(visible(vi) * TOKEN_TILE, TOKEN_TILE):
                    with T.sblock("sum"):
                        vc, vt = T.axis.remap("RS", [c, t])
                        with T.init():
                            total[vt] = T.float32(0)
                        total[vt] = total[vt] + P[vc, vt]
                for db in range(dim // rows):
                    with T.sblock("features"):
                        vdb = T.axis.spatial(dim // rows, db)
                        T.reads(
                            V[0 : batch * tiles, 0:kv_features, 0:TOKEN_TILE],
                            P[0:keys, 0:TOKEN_TILE],
                            total[0:TOKEN_TILE],
                        )
                        T.writes(Y[vb * tiles + vi, vh * dim + vdb * rows : vh * dim + vdb * rows + rows, 0:TOKEN_TILE])
                        mix = T.sblock_alloc_buffer((rows, TOKEN_TILE), "float32")
                        for kt, kl, r, t in T.grid(visible(vi), TOKEN_TILE, rows, TOKEN_TILE):
                            with T.sblock("context"):
                                vkt, vkl, vr, vt = T.axis.remap("RRSS", [kt, kl, r, t])
                                with T.init():
                                    mix[vr, vt] = T.float32(0)
                                mix[vr, vt] = (
                                    mix[vr, vt]
                                    + V[vb * tiles + vkt, T.floordiv(vh, share) * dim + vdb * rows + vr, vkl]
                                    * P[vkt * TOKEN_TILE + vkl, vt]
                                )
                        for r, t in T.grid(rows, TOKEN_TILE):
                            with T.sblock("divide"):
                                vr, vt = T.axis.remap("SS", [r, t])
                                Y[vb * tiles + vi, vh * dim + vdb * rows + vr, vt] = mix[vr, vt] / total[vt]

    return attention


def schedule_attention(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over queries everywhere; score and context blocks in registers."""
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
