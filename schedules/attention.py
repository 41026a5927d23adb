"""Attention on feature-major activations, fused per head and query tile.

Q, K and V are (tiles, heads * dim, 16): a head's K is already packed as 16 keys per feature, the panel form that a matrix
product wants, so scores, softmax and context are all vectors over 16 queries. Only the scores of one query tile exist, and of
them only those of key tiles that one of its queries sees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.attention_shape import MASKED, AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL, FeatureMajor
from rt3_tvm.schedules.linear_decisions import SMALL_FILE, largest_divisor
from rt3_tvm.schedules.loops import begin_before, loop_of, vectorise
from rt3_tvm.schedules.tasks import BY_LANE_ATTR, by_lane, share_loop
from rt3_tvm.schedules.vector_math import exp_of_negative

SOMETHING = 1e-30
"""What a sum of weights begins at."""


def register_rows(cpu: CpuShape, layout: FeatureMajor = FEATURE_MAJOR) -> int:
    """Return the rows times a tile of queries that fill the accumulators: 16 where there are 32 registers, else 8."""
    tile = layout.token_tile
    return (16 if cpu.registers > 16 else 8) * min(cpu.lanes(layout.element), tile) // tile


def _scores(shape: AttentionShape, block: int) -> Callable:
    """Return S = biased(K Q^T) of the key tiles that a query tile sees, a register block of keys at a time."""
    batch, heads, dim, kv_heads = shape.batch, shape.heads, shape.dim, shape.kv_heads
    tile, real, zero = shape.layout.token_tile, REAL.dtype, REAL.const(0.0)
    (tiles, key_tiles), share = shape.tiles, heads // kv_heads
    keys_of, scores_of = shape.key_bias_shape, shape.score_bias_shape

    @T.inline
    def scores(Q, K, key_bias, score_bias, S, h, b, i):
        """S = shape.biased(K Q^T) of the key tiles that the query tile sees, a register block of keys at a time."""
        for kt, kb in T.grid(shape.seen(i), tile // block):
            with T.sblock("keys"):
                vkt, vkb = T.axis.remap("SS", [kt, kb])
                T.reads(
                    Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                    K[0 : batch * key_tiles, 0 : kv_heads * dim, 0:tile],
                    key_bias[0 : keys_of[0], 0 : keys_of[1], 0, 0 : keys_of[3]],
                    score_bias[0 : scores_of[0], 0 : scores_of[1], 0 : scores_of[2]],
                )
                T.writes(S[vkt * tile + vkb * block : vkt * tile + vkb * block + block, 0:tile])
                acc = T.sblock_alloc_buffer((block, tile), real)
                for d, j, t in T.grid(dim, block, tile):
                    with T.sblock("score"):
                        vd = T.axis.reduce(dim, d)
                        vj, vt = T.axis.remap("SS", [j, t])
                        with T.init():
                            acc[vj, vt] = zero
                        acc[vj, vt] = (
                            acc[vj, vt]
                            + K[b * key_tiles + shape.first(i) + vkt, T.floordiv(h, share) * dim + vd, vkb * block + vj]
                            * Q[b * tiles + i, h * dim + vd, vt]
                        )
                for j, t in T.grid(block, tile):
                    with T.sblock("bias"):
                        vj, vt = T.axis.remap("SS", [j, t])
                        S[vkt * tile + vkb * block + vj, vt] = shape.biased(
                            acc[vj, vt],
                            key_bias,
                            score_bias,
                            (b, h, i, vt, (shape.first(i) + vkt) * tile + vkb * block + vj),
                        )

    return scores


def _softmax(shape: AttentionShape) -> Callable:
    """Return P = exp(S - largest), what is hidden exactly 0, and total = their sum.

    A query that only pads its tile may see no key at all, behind the end of a window: its sum begins at SOMETHING, so
    that it becomes 0 and no NaN, which as a key would spoil real queries. A sum of real weights is 1 or more and absorbs it.
    """
    tile, real = shape.layout.token_tile, REAL.dtype
    masked, something = REAL.const(MASKED), REAL.const(SOMETHING)

    @T.inline
    def softmax(S, P, total, i):
        largest = T.sblock_alloc_buffer((tile,), real)
        for c, t in T.grid(shape.seen(i) * tile, tile):
            with T.sblock("max"):
                vc, vt = T.axis.remap("RS", [c, t])
                with T.init():
                    largest[vt] = masked
                largest[vt] = T.max(largest[vt], S[vc, vt])
        for c, t in T.grid(shape.seen(i) * tile, tile):
            with T.sblock("exp"):
                vc, vt = T.axis.remap("SS", [c, t])
                P[vc, vt] = shape.hidden(
                    exp_of_negative(S[vc, vt] - largest[vt]), i * tile + vt, shape.first(i) * tile + vc, 0.0
                )
        for c, t in T.grid(shape.seen(i) * tile, tile):
            with T.sblock("sum"):
                vc, vt = T.axis.remap("RS", [c, t])
                with T.init():
                    total[vt] = something
                total[vt] = total[vt] + P[vc, vt]

    return softmax


def _context(shape: AttentionShape, rows: int) -> Callable:
    """Return Y = V P / total, a register block of features at a time."""
    batch, v_dim, kv_heads, widest = shape.batch, shape.v_dim, shape.kv_heads, shape.hides.widest
    tile, real, zero = shape.layout.token_tile, REAL.dtype, REAL.const(0.0)
    (tiles, key_tiles), share = shape.tiles, shape.heads // kv_heads

    @T.inline
    def context(V, P, total, Y, h, b, i):
        for db in range(v_dim // rows):
            with T.sblock("features"):
                vdb = T.axis.spatial(v_dim // rows, db)
                T.reads(
                    V[0 : batch * key_tiles, 0 : kv_heads * v_dim, 0:tile],
                    P[0 : widest * tile, 0:tile],
                    total[0:tile],
                )
                T.writes(Y[b * tiles + i, h * v_dim + vdb * rows : h * v_dim + vdb * rows + rows, 0:tile])
                mix = T.sblock_alloc_buffer((rows, tile), real)
                for kt, kl, r, t in T.grid(shape.seen(i), tile, rows, tile):
                    with T.sblock("context"):
                        vkt, vkl, vr, vt = T.axis.remap("RRSS", [kt, kl, r, t])
                        with T.init():
                            mix[vr, vt] = zero
                        mix[vr, vt] = (
                            mix[vr, vt]
                            + V[
                                b * key_tiles + shape.first(i) + vkt,
                                T.floordiv(h, share) * v_dim + vdb * rows + vr,
                                vkl,
                            ]
                            * P[vkt * tile + vkl, vt]
                        )
                for r, t in T.grid(rows, tile):
                    with T.sblock("divide"):
                        vr, vt = T.axis.remap("SS", [r, t])
                        Y[b * tiles + i, h * v_dim + vdb * rows + vr, vt] = mix[vr, vt] / total[vt]

    return context


@cache  # TVMScript is parsed anew on every call
def attention(shape: AttentionShape, register_rows: int = 4) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, key_bias, score_bias) -> y.

    q and y are (batch * tiles, heads * dim, 16), k and v (batch * key tiles, kv heads * dim, 16), ``key_bias`` (batch or 1,
    heads or 1, 1, keys), ``score_bias`` (.. * tiles, keys, 16), each query tile's 16 beside each other; biases that the shape
    does not have have one element. ``register_rows``: keys of a register block of scores, and the most features of one of
    the context.
    """
    batch, heads, dim, v_dim, kv_heads = shape.batch, shape.heads, shape.dim, shape.v_dim, shape.kv_heads
    layout, tile, dtype, real = shape.layout, shape.layout.token_tile, shape.layout.element.dtype, REAL.dtype
    (tiles, key_tiles), widest = shape.tiles, shape.hides.widest
    keys_of, scores_of = shape.key_bias_shape, shape.score_bias_shape
    scores = _scores(shape, largest_divisor(tile, register_rows))
    softmax, context = _softmax(shape), _context(shape, largest_divisor(v_dim, register_rows))

    @T.prim_func(s_tir=True)
    def attention(q: T.handle, k: T.handle, v: T.handle, m: T.handle, s: T.handle, y: T.handle):
        Q = T.match_buffer(q, layout.shape(batch * tiles, heads * dim), dtype)
        K = T.match_buffer(k, layout.shape(batch * key_tiles, kv_heads * dim), dtype)
        V = T.match_buffer(v, layout.shape(batch * key_tiles, kv_heads * v_dim), dtype)
        key_bias = T.match_buffer(m, keys_of, real)
        score_bias = T.match_buffer(s, scores_of, real)
        Y = T.match_buffer(y, layout.shape(batch * tiles, heads * v_dim), dtype)
        for h, b, i in T.grid(heads, batch, tiles):
            with T.sblock("tile"):
                vh, vb, vi = T.axis.remap("SSS", [h, b, i])
                T.reads(
                    Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                    K[0 : batch * key_tiles, 0 : kv_heads * dim, 0:tile],
                    V[0 : batch * key_tiles, 0 : kv_heads * v_dim, 0:tile],
                    key_bias[0 : keys_of[0], 0 : keys_of[1], 0, 0 : keys_of[3]],
                    score_bias[0 : scores_of[0], 0 : scores_of[1], 0 : scores_of[2]],
                )
                T.writes(Y[vb * tiles + vi, vh * v_dim : vh * v_dim + v_dim, 0:tile])
                S = T.sblock_alloc_buffer((widest * tile, tile), real)
                P = T.sblock_alloc_buffer((widest * tile, tile), real)
                total = T.sblock_alloc_buffer((tile,), real)
                scores(Q, K, key_bias, score_bias, S, vh, vb, vi)
                softmax(S, P, total, vi)
                context(V, P, total, Y, vh, vb, vi)

    return attention


def attention_of(shape: AttentionShape, cpu: CpuShape) -> tirx.PrimFunc:
    """Return the kernel for a core: as many register rows as it has registers, and loads by lane where it multiplies so."""
    func = attention(shape, register_rows(cpu, shape.layout))
    if not cpu.by_lane:
        return func
    # A vector of each feature of V, for as many keys, takes registers that a small file has not.
    weights = ["K", "V"] if cpu.registers > SMALL_FILE else ["K"]
    return func.with_attr(BY_LANE_ATTR, by_lane(cpu, shape.layout, weights, ["Q", "K", "V"]))


def schedule_attention(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over queries everywhere; score and context blocks in registers."""
    sch = Schedule(func)
    if func.attrs and "V" in func.attrs.get(BY_LANE_ATTR, {}).get("weights", ()):
        # A vector of each feature of V is as many keys: they are its lanes.
        sch.unroll(sch.split(loop_of(sch, "context", "kl"), [None, lanes])[1])
    for step in STEPS:
        vectorise(sch, step.block, "t", lanes, step.registers)
        if step.summed:
            begin_before(sch, step.block, step.summed, (*step.registers, "t_0"))
    share_loop(sch, loop_of(sch, "tile", "h"))  # heads: each thread reads K and V of its own
    return sch.mod["main"]


@dataclass(frozen=True)
class Step:
    """A block of the kernel; the outermost loop that it is summed over; which loop is a register block beside the queries."""

    block: str
    summed: str = ""
    registers: tuple[str, ...] = ()


STEPS = (
    Step(
        "score", "d", ("j",)
    ),  # a key is a scalar for all queries, each vector of queries is loaded once for the block of keys
    Step("bias", registers=("j",)),  # what the block has left in registers is scaled there
    Step("max", "c"),
    Step("exp"),  # its polynomial fills the registers: a block of rows would spill
    Step("sum", "c"),
    Step("context", "kt", ("r",)),  # as for scores: a feature of a value is a scalar, weights of queries are vectors
    Step("divide", registers=("r",)),
)
"""The blocks in their order."""
