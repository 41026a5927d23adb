"""Attention whose products are float16: at levels of int8, on cores that have arithmetic on float16.

The nest is that of ``attention``, with twice as many numbers in a vector. Q, K, V and the result are float32. A task converts the
keys and values of its head once, for all of its queries. A score is summed in float16 over at most ``LONGEST_SCORE`` features, a
context over ``SPAN`` tiles of keys; what is longer is summed in float32 over such parts. Biases, what is hidden, the largest
score, the powers of 2 and their sum are float32, and a weight, which is at most 2, is rounded when it is stored.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.attention import SOMETHING, Step, begin_task
from rt3_tvm.schedules.attention_blocks import AttentionBlocks
from rt3_tvm.schedules.attention_shape import LOWEST, AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FLOAT16, REAL, FeatureMajor
from rt3_tvm.schedules.linear_decisions import largest_divisor
from rt3_tvm.schedules.loops import loop_of
from rt3_tvm.schedules.tasks import BY_LANE_ATTR, by_lane, of_tasks, share_loop
from rt3_tvm.schedules.vector_math import VectorUnit, coarse_base, coarse_weight

SHAPE_ATTR = "rt3.attention"
"""PrimFunc attribute that says what the kernel computes, for whoever computes the same."""


def _narrow(shape: AttentionShape, features: int, block: str) -> Callable:
    """Return the keys, or values, of a head, rounded; ``features``: of each."""
    batch, kv_heads, tile = shape.batch, shape.kv_heads, shape.layout.token_tile
    key_tiles, share, half = shape.tiles[1], shape.heads // shape.kv_heads, FLOAT16.dtype

    @T.inline
    def narrow(X, rounded, h, b):
        for kt, d, t in T.grid(key_tiles, features, tile):
            with T.sblock(block):
                vkt, vd, vt = T.axis.remap("SSS", [kt, d, t])
                T.reads(X[0 : batch * key_tiles, 0 : kv_heads * features, 0:tile])
                T.writes(rounded[vkt, vd, vt])
                rounded[vkt, vd, vt] = T.Cast(half, X[b * key_tiles + vkt, T.floordiv(h, share) * features + vd, vt])

    return narrow


def _scores(shape: AttentionShape, blocks: AttentionBlocks) -> Callable:
    """Return S = ended(K Q^T) of the key tiles that a task sees, a register block at a time, and the largest of each query."""
    dim, tile, key_tiles = shape.dim, shape.layout.token_tile, shape.tiles[1]
    own, real, half = blocks.tiles(tile), REAL.dtype, FLOAT16.dtype
    widest, lowest, zero = shape.hides.widest(own) * tile, REAL.const(LOWEST), FLOAT16.const(0.0)
    block, queries, summed = blocks.keys, blocks.queries, shape.longest_score
    parts, unrolled = dim // summed, largest_divisor(summed, blocks.unrolled)
    scores_of = shape.score_bias_shape

    def ended(
        p: tirx.Expr, total: tirx.Expr, before: tirx.Expr, of_key: tirx.Expr, of_score: Any, at: tuple
    ) -> tirx.Expr:
        """Return what is written of a part's sum: what goes into the softmax behind the last part."""
        if parts == 1:
            return shape.ended(total, of_key, of_score, at)
        total = total + tirx.Select(p == 0, REAL.const(0.0), before)
        return tirx.Select(p == parts - 1, shape.ended(total, of_key, of_score, at), total)

    @T.inline
    def scores(scaled, keys, bias, score_bias, S, largest, h, b, i):
        for ub, kt, kb in T.grid(own * tile // queries, shape.seen(i, own), tile // block):
            with T.sblock("keys"):
                vub, vkt, vkb = T.axis.remap("SSS", [ub, kt, kb])
                T.reads(
                    scaled[0:dim, 0 : own * tile],
                    keys[0:key_tiles, 0:dim, 0:tile],
                    bias[0:widest],
                    score_bias[0 : scores_of[0], 0 : scores_of[1], 0 : scores_of[2]],
                )
                T.writes(S[0:widest, 0 : own * tile])
                acc = T.sblock_alloc_buffer((block, queries), half)
                for p in range(parts):
                    for d0, d1, j, u in T.grid(summed // unrolled, unrolled, block, queries):
                        with T.sblock("score"):
                            vp, vj, vu = T.axis.remap("SSS", [p, j, u])
                            vd = T.axis.reduce(summed, d0 * unrolled + d1)
                            with T.init():
                                acc[vj, vu] = zero
                            acc[vj, vu] = (
                                acc[vj, vu]
                                + keys[shape.first(i, own) + vkt, vp * summed + vd, vkb * block + vj]
                                * scaled[vp * summed + vd, vub * queries + vu]
                            )
                    for j, u in T.grid(block, queries):
                        with T.sblock("end"):
                            vp, vj, vu = T.axis.remap("SSS", [p, j, u])
                            T.reads(
                                acc[vj, vu], bias[vkt * tile + vkb * block + vj]
                            )  # and what other parts have written
                            T.writes(S[vkt * tile + vkb * block + vj, vub * queries + vu])
                            S[vkt * tile + vkb * block + vj, vub * queries + vu] = ended(
                                vp,
                                T.Cast(real, acc[vj, vu]),
                                S[vkt * tile + vkb * block + vj, vub * queries + vu],
                                bias[vkt * tile + vkb * block + vj],
                                score_bias,
                                (
                                    b,
                                    h,
                                    (i * own * tile) + vub * queries + vu,
                                    (shape.first(i, own) + vkt) * tile + vkb * block + vj,
                                ),
                            )
            for j, u in T.grid(block, queries):
                with T.sblock("max"):
                    vub, vkt, vkb, vj, vu = T.axis.remap("SRRRS", [ub, kt, kb, j, u])
                    with T.init():
                        largest[vub * queries + vu] = lowest
                    largest[vub * queries + vu] = T.max(
                        largest[vub * queries + vu], S[vkt * tile + vkb * block + vj, vub * queries + vu]
                    )

    return scores


def _softmax(shape: AttentionShape, blocks: AttentionBlocks, unit: VectorUnit) -> Callable:
    """Return P = 2**(S - largest) but for a factor, at most 2 and rounded, what is hidden exactly 0, and one = 1 / their sum.

    The sum begins at SOMETHING, as that of ``attention`` does.
    """
    tile, own, real, half = shape.layout.token_tile, blocks.tiles(shape.layout.token_tile), REAL.dtype, FLOAT16.dtype
    widest, queries, rows = shape.hides.widest(own) * tile, blocks.weights, blocks.rows
    something = REAL.const(SOMETHING)

    @T.inline
    def softmax(S, P, largest, one, i):
        base = T.sblock_alloc_buffer((own * tile,), real)
        total = T.sblock_alloc_buffer((own * tile,), real)
        weights = T.sblock_alloc_buffer((rows, own * tile), real)
        for u in range(own * tile):
            with T.sblock("base"):
                vu = T.axis.spatial(own * tile, u)
                base[vu] = coarse_base(largest[vu], unit)
        for ub, c0 in T.grid(own * tile // queries, shape.seen(i, own) * tile // rows):
            for c1, u in T.grid(rows, queries):
                with T.sblock("exp"):
                    vc, vr = T.axis.remap("SS", [c0, c1])
                    vu = T.axis.spatial(own * tile, ub * queries + u)
                    weights[vr, vu] = coarse_weight(S[vc * rows + vr, vu], base[vu], unit)
            for c1, u in T.grid(rows, queries):
                with T.sblock("sum"):
                    vc, vr = T.axis.remap("RR", [c0, c1])
                    vu = T.axis.spatial(own * tile, ub * queries + u)
                    with T.init():
                        total[vu] = something
                    total[vu] = total[vu] + weights[vr, vu]
            for c1, u in T.grid(rows, queries):
                with T.sblock("round"):
                    vc = T.axis.spatial(widest, c0 * rows + c1)
                    vr = T.axis.spatial(rows, c1)
                    vu = T.axis.spatial(own * tile, ub * queries + u)
                    P[vc, vu] = T.Cast(half, weights[vr, vu])
        for u in range(own * tile):
            with T.sblock("invert"):
                vu = T.axis.spatial(own * tile, u)
                one[vu] = REAL.const(1.0) / total[vu]

    return softmax


def _context(shape: AttentionShape, blocks: AttentionBlocks) -> Callable:
    """Return Y = V P / total, a register block of features and queries at a time, summed in float32 over spans of keys."""
    v_dim, tile, (tiles, key_tiles), own = (
        shape.v_dim,
        shape.layout.token_tile,
        shape.tiles,
        blocks.tiles(shape.layout.token_tile),
    )
    widest, real, half, zero = shape.hides.widest(own), REAL.dtype, FLOAT16.dtype, FLOAT16.const(0.0)
    rows, queries, unrolled = blocks.features, blocks.mixed, largest_divisor(tile, blocks.unrolled)
    span = shape.span(own)

    @T.inline
    def context(values, P, one, Y, h, b, i):
        for db, ub in T.grid(v_dim // rows, own * tile // queries):
            with T.sblock("features"):
                vdb, vub = T.axis.remap("SS", [db, ub])
                T.reads(
                    values[0:key_tiles, 0:v_dim, 0:tile],
                    P[0 : widest * tile, 0 : own * tile],
                    one[0 : own * tile],
                )
                T.writes(Y[b * tiles + i * own : b * tiles + i * own + own, h * v_dim : h * v_dim + v_dim, 0:tile])
                acc = T.sblock_alloc_buffer((rows, queries), half)
                mix = T.sblock_alloc_buffer((rows, queries), real)
                for s in range(T.floordiv(shape.seen(i, own), span)):
                    for kt, k0, k1, r, u in T.grid(span, tile // unrolled, unrolled, rows, queries):
                        with T.sblock("context"):
                            vs, vr, vu = T.axis.remap("SSS", [s, r, u])
                            vkt = T.axis.reduce(span, kt)
                            vk = T.axis.reduce(tile, k0 * unrolled + k1)
                            with T.init():
                                acc[vr, vu] = zero
                            acc[vr, vu] = (
                                acc[vr, vu]
                                + values[shape.first(i, own) + vs * span + vkt, vdb * rows + vr, vk]
                                * P[(vs * span + vkt) * tile + vk, vub * queries + vu]
                            )
                    for r, u in T.grid(rows, queries):
                        with T.sblock("widen"):
                            vs = T.axis.reduce(widest // span, s)
                            vr, vu = T.axis.remap("SS", [r, u])
                            with T.init():
                                mix[vr, vu] = REAL.const(0.0)
                            mix[vr, vu] = mix[vr, vu] + T.Cast(real, acc[vr, vu])
                for r, u in T.grid(rows, queries):
                    with T.sblock("divide"):
                        vr, vu = T.axis.remap("SS", [r, u])
                        Y[
                            b * tiles + i * own + T.floordiv(vub * queries + vu, tile),
                            h * v_dim + vdb * rows + vr,
                            T.floormod(vub * queries + vu, tile),
                        ] = mix[vr, vu] * one[vub * queries + vu]

    return context


@cache  # TVMScript is parsed anew on every call
def attention_float16(shape: AttentionShape, blocks: AttentionBlocks, unit: VectorUnit) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, key_bias, score_bias) -> y, whose arguments are those of ``attention``."""
    batch, heads, dim, v_dim, kv_heads = shape.batch, shape.heads, shape.dim, shape.v_dim, shape.kv_heads
    layout, tile, real, half = shape.layout, shape.layout.token_tile, REAL.dtype, FLOAT16.dtype
    (tiles, key_tiles), own = shape.tiles, blocks.tiles(shape.layout.token_tile)
    widest = shape.hides.widest(own) * tile
    keys_of, scores_of = shape.key_bias_shape, shape.score_bias_shape
    narrow_keys, narrow_values = _narrow(shape, dim, "key"), _narrow(shape, v_dim, "value")
    begin, scores = begin_task(shape, blocks), _scores(shape, blocks)
    softmax, context = _softmax(shape, blocks, unit), _context(shape, blocks)

    @T.prim_func(s_tir=True)
    def attention(q: T.handle, k: T.handle, v: T.handle, m: T.handle, s: T.handle, y: T.handle):
        Q = T.match_buffer(q, layout.shape(batch * tiles, heads * dim), real)
        K = T.match_buffer(k, layout.shape(batch * key_tiles, kv_heads * dim), real)
        V = T.match_buffer(v, layout.shape(batch * key_tiles, kv_heads * v_dim), real)
        key_bias = T.match_buffer(m, keys_of, real)
        score_bias = T.match_buffer(s, scores_of, real)
        Y = T.match_buffer(y, layout.shape(batch * tiles, heads * v_dim), real)
        for h, b in T.grid(heads, batch):
            with T.sblock("head"):
                vh, vb = T.axis.remap("SS", [h, b])
                T.reads(
                    Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                    K[0 : batch * key_tiles, 0 : kv_heads * dim, 0:tile],
                    V[0 : batch * key_tiles, 0 : kv_heads * v_dim, 0:tile],
                    key_bias[0 : keys_of[0], 0 : keys_of[1], 0, 0 : keys_of[3]],
                    score_bias[0 : scores_of[0], 0 : scores_of[1], 0 : scores_of[2]],
                )
                T.writes(Y[vb * tiles : vb * tiles + tiles, vh * v_dim : vh * v_dim + v_dim, 0:tile])
                keys = T.sblock_alloc_buffer((key_tiles, dim, tile), half)
                values = T.sblock_alloc_buffer((key_tiles, v_dim, tile), half)
                narrow_keys(K, keys, vh, vb)
                narrow_values(V, values, vh, vb)
                for i in range(tiles // own):
                    with T.sblock("task"):
                        vi = T.axis.spatial(tiles // own, i)
                        T.reads(
                            Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                            keys[0:key_tiles, 0:dim, 0:tile],
                            values[0:key_tiles, 0:v_dim, 0:tile],
                            key_bias[0 : keys_of[0], 0 : keys_of[1], 0, 0 : keys_of[3]],
                            score_bias[0 : scores_of[0], 0 : scores_of[1], 0 : scores_of[2]],
                        )
                        T.writes(
                            Y[
                                vb * tiles + vi * own : vb * tiles + vi * own + own,
                                vh * v_dim : vh * v_dim + v_dim,
                                0:tile,
                            ]
                        )
                        scaled = T.sblock_alloc_buffer((dim, own * tile), half)
                        bias = T.sblock_alloc_buffer((widest,), real)
                        S = T.sblock_alloc_buffer((widest, own * tile), real)
                        P = T.sblock_alloc_buffer((widest, own * tile), half)
                        largest = T.sblock_alloc_buffer((own * tile,), real)
                        one = T.sblock_alloc_buffer((own * tile,), real)
                        begin(Q, key_bias, scaled, bias, vh, vb, vi)
                        scores(scaled, keys, bias, score_bias, S, largest, vh, vb, vi)
                        softmax(S, P, largest, one, vi)
                        context(values, P, one, Y, vh, vb, vi)

    return attention


def attention_float16_of(shape: AttentionShape, cpu: CpuShape) -> tirx.PrimFunc:
    """Return the kernel for a core: blocks that fit its registers, and loads by lane where it multiplies so."""
    func = attention_float16(shape, AttentionBlocks.of(shape, cpu), cpu.unit).with_attr(SHAPE_ATTR, shape.to_attrs())
    if not cpu.by_lane:
        return func
    few = cpu.cost(FLOAT16).held > 0
    layout = FeatureMajor(FLOAT16, shape.layout.token_tile)
    # Keys and values are written by the kernel, so that no loop may read them by another pointer.
    weights = ["keys", "values", of_tasks("keys"), of_tasks("values")]
    return func.with_attr(BY_LANE_ATTR, by_lane(cpu, layout, weights, []) | {"few": few})


def schedule_attention_float16(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over queries everywhere, ``lanes`` of float16; score and context blocks in registers."""
    sch = Schedule(func)
    for step in STEPS:
        step.take(sch, lanes)
    sch.unroll(loop_of(sch, "end", "p"))
    share_loop(sch, loop_of(sch, "head", "h"))  # heads: each thread reads K and V of its own
    return sch.mod["main"]


STEPS = (
    Step("key", vector="t"),
    Step("value", vector="t"),
    Step("scale"),
    Step("bias", vector="t"),
    Step("score", "d0", ("d1", "j"), 1),
    Step("end", registers=("j",)),
    Step("max", "kt", ("j",), 1),
    Step("base"),
    Step("exp", registers=("c1",)),
    Step("sum", "c0", ("c1",), 1),
    Step("round", registers=("c1",)),
    Step("invert"),
    Step("context", "kt", ("k1", "r"), 1),
    Step("widen", "s", ("r",)),
    Step("divide", registers=("r",)),
)
"""The blocks in their order."""
