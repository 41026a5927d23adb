"""Attention on feature-major activations, fused per head and query tile.

Q, K and V are (tiles, heads * dim, 16): a head's K is already packed as 16 keys per feature, the panel form that a matrix
product wants, so scores, softmax and context are all vectors over 16 queries. Only the scores of one query tile exist, and of
them only those of key tiles that one of its queries sees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.attention_blocks import AttentionBlocks
from rt3_tvm.schedules.attention_shape import LOWEST, AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.schedules.linear_decisions import SMALL_FILE, largest_divisor
from rt3_tvm.schedules.loops import begin_before, loop_of, vectorise
from rt3_tvm.schedules.tasks import BY_LANE_ATTR, by_lane, share_loop
from rt3_tvm.schedules.vector_math import AVX512_LANES, VectorUnit, largest_power, power_of_vector, softmax_weight

SOMETHING = 1e-30
"""What a sum of weights begins at."""


def begin_task(shape: AttentionShape, blocks: AttentionBlocks) -> Callable:
    """Return the queries of a task, multiplied by the scale, in the shape's element type, and the biases of its keys.

    Both are in powers of 2.
    """
    batch, heads, dim, tile = shape.batch, shape.heads, shape.dim, shape.layout.token_tile
    own, factor, dtype = blocks.tiles(tile), REAL.const(shape.factor), shape.element.dtype
    keys_of = shape.key_bias_shape

    @T.inline
    def begin(Q, key_bias, scaled, bias, h, b, i):
        for d, u in T.grid(dim, own * tile):
            with T.sblock("scale"):
                vd, vu = T.axis.remap("SS", [d, u])
                T.reads(Q[0 : batch * shape.tiles[0], 0 : heads * dim, 0:tile])
                T.writes(scaled[vd, vu])
                scaled[vd, vu] = (
                    Q[b * shape.tiles[0] + i * own + T.floordiv(vu, tile), h * dim + vd, T.floormod(vu, tile)] * factor
                ).astype(dtype)
        for kt, t in T.grid(shape.seen(i, own), tile):
            with T.sblock("bias"):
                vkt, vt = T.axis.remap("SS", [kt, t])
                T.reads(key_bias[0 : keys_of[0], 0 : keys_of[1], 0, 0 : keys_of[3]])
                T.writes(bias[vkt * tile + vt])
                bias[vkt * tile + vt] = shape.bias_of_key(key_bias, b, h, (shape.first(i, own) + vkt) * tile + vt)

    return begin


def _scores(shape: AttentionShape, blocks: AttentionBlocks) -> Callable:
    """Return S = ended(K Q^T) of the key tiles that a task sees, a register block at a time, and the largest of each query."""
    batch, dim, kv_heads, tile = shape.batch, shape.dim, shape.kv_heads, shape.layout.token_tile
    key_tiles, share, own = shape.tiles[1], shape.heads // kv_heads, blocks.tiles(tile)
    widest, real = shape.hides.widest(own) * tile, REAL.dtype
    zero, lowest = REAL.const(0.0), REAL.const(LOWEST)
    block, queries, unrolled = blocks.keys, blocks.queries, largest_divisor(dim, blocks.unrolled)
    scores_of = shape.score_bias_shape

    def started(of_key: tirx.Expr) -> tirx.Expr:
        return of_key if shape.starts_biased else zero

    @T.inline
    def scores(scaled, K, bias, score_bias, S, largest, h, b, i):
        for ub, kt, kb in T.grid(own * tile // queries, shape.seen(i, own), tile // block):
            with T.sblock("keys"):
                vub, vkt, vkb = T.axis.remap("SSS", [ub, kt, kb])
                T.reads(
                    scaled[0:dim, 0 : own * tile],
                    K[0 : batch * key_tiles, 0 : kv_heads * dim, 0:tile],
                    bias[0:widest],
                    score_bias[0 : scores_of[0], 0 : scores_of[1], 0 : scores_of[2]],
                )
                T.writes(S[0:widest, 0 : own * tile])
                acc = T.sblock_alloc_buffer((block, queries), real)
                for d0, d1, j, u in T.grid(dim // unrolled, unrolled, block, queries):
                    with T.sblock("score"):
                        vd = T.axis.reduce(dim, d0 * unrolled + d1)
                        vj, vu = T.axis.remap("SS", [j, u])
                        with T.init():
                            acc[vj, vu] = started(bias[vkt * tile + vkb * block + vj])
                        acc[vj, vu] = (
                            acc[vj, vu]
                            + K[
                                b * key_tiles + shape.first(i, own) + vkt,
                                T.floordiv(h, share) * dim + vd,
                                vkb * block + vj,
                            ]
                            * scaled[vd, vub * queries + vu]
                        )
                for j, u in T.grid(block, queries):
                    with T.sblock("end"):
                        vj, vu = T.axis.remap("SS", [j, u])
                        S[vkt * tile + vkb * block + vj, vub * queries + vu] = shape.ended(
                            acc[vj, vu],
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
    """Return P = 2**(S - largest) but for a factor, what is hidden exactly 0, and one = 1 / their sum.

    A query that only pads its tile may see no key at all, behind the end of a window: its sum begins at SOMETHING, so
    that it becomes 0 and no NaN, which as a key would spoil real queries. A sum of real weights is 1 or more and absorbs it.
    """
    tile, own, real = shape.layout.token_tile, blocks.tiles(shape.layout.token_tile), REAL.dtype
    widest, queries, rows = shape.hides.widest(own) * tile, blocks.weights, blocks.rows
    something = REAL.const(SOMETHING)

    @T.inline
    def softmax(S, P, largest, one, i):
        base = T.sblock_alloc_buffer((own * tile,), real)
        total = T.sblock_alloc_buffer((own * tile,), real)
        for u in range(own * tile):
            with T.sblock("base"):
                vu = T.axis.spatial(own * tile, u)
                base[vu] = largest_power(largest[vu], unit)
        for ub, c0 in T.grid(own * tile // queries, shape.seen(i, own) * tile // rows):
            for c1, u in T.grid(rows, queries):
                with T.sblock("exp"):
                    vc = T.axis.spatial(widest, c0 * rows + c1)
                    vu = T.axis.spatial(own * tile, ub * queries + u)
                    P[vc, vu] = softmax_weight(S[vc, vu], base[vu], unit)
            for c1, u in T.grid(rows, queries):
                with T.sblock("sum"):
                    vc = T.axis.reduce(widest, c0 * rows + c1)
                    vu = T.axis.spatial(own * tile, ub * queries + u)
                    with T.init():
                        total[vu] = something
                    total[vu] = total[vu] + P[vc, vu]
        for u in range(own * tile):
            with T.sblock("invert"):
                vu = T.axis.spatial(own * tile, u)
                one[vu] = REAL.const(1.0) / total[vu]

    return softmax


def _softmax_by_vector(shape: AttentionShape, blocks: AttentionBlocks) -> Callable:
    """Return P = 2**(S - largest), which takes the place of S, and one = 1 / their sum, by what AVX-512 has.

    A loop of its own, that no schedule touches: the instructions know no numbers, only whole vectors of them.
    """
    tile, own, real = shape.layout.token_tile, blocks.tiles(shape.layout.token_tile), REAL.dtype
    widest, lanes = shape.hides.widest(own) * tile, AVX512_LANES
    vectors = own * tile // lanes

    @T.inline
    def softmax(S, largest, one, i):
        with T.sblock("weights"):
            T.reads(S[0:widest, 0 : own * tile], largest[0 : own * tile])
            T.writes(S[0:widest, 0 : own * tile], one[0 : own * tile])
            total = T.sblock_alloc_buffer((own * tile,), real)
            for v in T.unroll(vectors):
                total[T.Ramp(v * lanes, 1, lanes)] = T.Broadcast(REAL.const(SOMETHING), lanes)
            for c in range(shape.seen(i, own) * tile):
                for v in T.unroll(vectors):
                    S[c, T.Ramp(v * lanes, 1, lanes)] = power_of_vector(
                        S[c, T.Ramp(v * lanes, 1, lanes)] - largest[T.Ramp(v * lanes, 1, lanes)]
                    )
                    total[T.Ramp(v * lanes, 1, lanes)] = (
                        total[T.Ramp(v * lanes, 1, lanes)] + S[c, T.Ramp(v * lanes, 1, lanes)]
                    )
            for v in T.unroll(vectors):
                one[T.Ramp(v * lanes, 1, lanes)] = (
                    T.Broadcast(REAL.const(1.0), lanes) / total[T.Ramp(v * lanes, 1, lanes)]
                )

    return softmax


def _context(shape: AttentionShape, blocks: AttentionBlocks) -> Callable:
    """Return Y = V P / total, a register block of features and queries at a time."""
    batch, v_dim, kv_heads, tile = shape.batch, shape.v_dim, shape.kv_heads, shape.layout.token_tile
    (tiles, key_tiles), share, own = shape.tiles, shape.heads // shape.kv_heads, blocks.tiles(tile)
    widest, real, zero = shape.hides.widest(own), REAL.dtype, REAL.const(0.0)
    rows, queries, unrolled = blocks.features, blocks.mixed, largest_divisor(tile, blocks.unrolled)

    @T.inline
    def context(V, P, one, Y, h, b, i):
        for db, ub in T.grid(v_dim // rows, own * tile // queries):
            with T.sblock("features"):
                vdb, vub = T.axis.remap("SS", [db, ub])
                T.reads(
                    V[0 : batch * key_tiles, 0 : kv_heads * v_dim, 0:tile],
                    P[0 : widest * tile, 0 : own * tile],
                    one[0 : own * tile],
                )
                T.writes(Y[b * tiles + i * own : b * tiles + i * own + own, h * v_dim : h * v_dim + v_dim, 0:tile])
                mix = T.sblock_alloc_buffer((rows, queries), real)
                for kt, k0, k1, r, u in T.grid(shape.seen(i, own), tile // unrolled, unrolled, rows, queries):
                    with T.sblock("context"):
                        vkt, vr, vu = T.axis.remap("RSS", [kt, r, u])
                        vk = T.axis.reduce(tile, k0 * unrolled + k1)
                        with T.init():
                            mix[vr, vu] = zero
                        mix[vr, vu] = (
                            mix[vr, vu]
                            + V[
                                b * key_tiles + shape.first(i, own) + vkt,
                                T.floordiv(h, share) * v_dim + vdb * rows + vr,
                                vk,
                            ]
                            * P[vkt * tile + vk, vub * queries + vu]
                        )
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
def attention(shape: AttentionShape, blocks: AttentionBlocks, unit: VectorUnit) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, key_bias, score_bias) -> y.

    q and y are (batch * tiles, heads * dim, 16), k and v (batch * key tiles, kv heads * dim, 16), ``key_bias`` (batch or 1,
    heads or 1, 1, keys), ``score_bias`` (.. * tiles, keys, 16), each query tile's 16 beside each other; biases that the shape
    does not have have one element.
    """
    batch, heads, dim, v_dim, kv_heads = shape.batch, shape.heads, shape.dim, shape.v_dim, shape.kv_heads
    layout, tile, dtype, real = shape.layout, shape.layout.token_tile, shape.layout.element.dtype, REAL.dtype
    (tiles, key_tiles), own = shape.tiles, blocks.tiles(shape.layout.token_tile)
    widest = shape.hides.widest(own) * tile
    keys_of, scores_of = shape.key_bias_shape, shape.score_bias_shape
    begin, scores = begin_task(shape, blocks), _scores(shape, blocks)
    by_vector = unit.avx512
    softmax = _softmax_by_vector(shape, blocks) if by_vector else _softmax(shape, blocks, unit)
    context = _context(shape, blocks)

    @T.prim_func(s_tir=True)
    def attention(q: T.handle, k: T.handle, v: T.handle, m: T.handle, s: T.handle, y: T.handle):
        Q = T.match_buffer(q, layout.shape(batch * tiles, heads * dim), dtype)
        K = T.match_buffer(k, layout.shape(batch * key_tiles, kv_heads * dim), dtype)
        V = T.match_buffer(v, layout.shape(batch * key_tiles, kv_heads * v_dim), dtype)
        key_bias = T.match_buffer(m, keys_of, real)
        score_bias = T.match_buffer(s, scores_of, real)
        Y = T.match_buffer(y, layout.shape(batch * tiles, heads * v_dim), dtype)
        for h, b, i in T.grid(heads, batch, tiles // own):
            with T.sblock("task"):
                vh, vb, vi = T.axis.remap("SSS", [h, b, i])
                T.reads(
                    Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                    K[0 : batch * key_tiles, 0 : kv_heads * dim, 0:tile],
                    V[0 : batch * key_tiles, 0 : kv_heads * v_dim, 0:tile],
                    key_bias[0 : keys_of[0], 0 : keys_of[1], 0, 0 : keys_of[3]],
                    score_bias[0 : scores_of[0], 0 : scores_of[1], 0 : scores_of[2]],
                )
                T.writes(
                    Y[vb * tiles + vi * own : vb * tiles + vi * own + own, vh * v_dim : vh * v_dim + v_dim, 0:tile]
                )
                scaled = T.sblock_alloc_buffer((dim, own * tile), real)
                bias = T.sblock_alloc_buffer((widest,), real)
                S = T.sblock_alloc_buffer((widest, own * tile), real)
                largest = T.sblock_alloc_buffer((own * tile,), real)
                one = T.sblock_alloc_buffer((own * tile,), real)
                begin(Q, key_bias, scaled, bias, vh, vb, vi)
                scores(scaled, K, bias, score_bias, S, largest, vh, vb, vi)
                if by_vector:
                    softmax(S, largest, one, vi)
                    context(V, S, one, Y, vh, vb, vi)
                else:
                    P = T.sblock_alloc_buffer((widest, own * tile), real)
                    softmax(S, P, largest, one, vi)
                    context(V, P, one, Y, vh, vb, vi)

    return attention


def attention_of(shape: AttentionShape, cpu: CpuShape) -> tirx.PrimFunc:
    """Return the kernel for a core: blocks that fit its registers, and loads by lane where it multiplies so."""
    func = attention(shape, AttentionBlocks.of(shape, cpu), cpu.unit)
    if not cpu.by_lane:
        return func
    # A vector of each feature of V, for as many keys, takes registers that a small file has not.
    weights = ["K", "bias", "V"] if cpu.registers > SMALL_FILE else ["K", "bias"]
    few = cpu.cost(shape.layout.element).held > 0
    return func.with_attr(BY_LANE_ATTR, by_lane(cpu, shape.layout, weights, ["K", "V"]) | {"few": few})


def schedule_attention(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over queries everywhere; score and context blocks in registers."""
    sch = Schedule(func)
    blocks: set[str] = set()
    tvm_ffi.structural_walk(func.body, (s_tir.SBlock, lambda block: blocks.add(str(block.name_hint))))
    for step in STEPS:
        if step.block in blocks:
            step.take(sch, lanes)
    share_loop(sch, loop_of(sch, "task", "h"))  # heads: each thread reads K and V of its own
    return sch.mod["main"]


@dataclass(frozen=True)
class Step:
    """A block of the kernel; the outermost loop that it is summed over; the loops around its vectors that are unrolled.

    The first ``inner`` of those are summed over too.
    """

    block: str
    summed: str = ""
    registers: tuple[str, ...] = ()
    inner: int = 0
    vector: str = "u"

    def take(self, sch: Schedule, lanes: int) -> None:
        """Make vectors of the block, and let its sums begin outside of their loop."""
        vectorise(sch, self.block, self.vector, lanes, self.registers)
        if self.summed:
            begin_before(sch, self.block, self.summed, (*self.registers[self.inner :], f"{self.vector}_0"))


STEPS = (
    Step("scale"),
    Step("bias", vector="t"),
    # A key is a scalar for all queries, each vector of queries is loaded once for the block of keys.
    Step("score", "d0", ("d1", "j"), 1),
    Step("end", registers=("j",)),  # what the block has left in registers ends there
    Step("max", "kt", ("j",), 1),
    Step("base"),
    Step("exp", registers=("c1",)),
    Step("sum", "c0", ("c1",), 1),
    Step("invert"),
    # As for scores: a feature of a value is a scalar, weights of queries are vectors.
    Step("context", "kt", ("k1", "r"), 1),
    Step("divide", registers=("r",)),
)
"""The blocks in their order."""
