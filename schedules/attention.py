"""Attention on feature-major activations, fused per head and query tile.

Q, K and V are (tiles, heads * dim, 16): a head's K is already packed as 16 keys per feature, the panel form that a matrix
product wants, so scores, softmax and context are all vectors over 16 queries. Only the scores of one query tile exist, and of
them only those of key tiles that one of its queries sees.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL, FeatureMajor
from rt3_tvm.schedules.linear_decisions import SMALL_FILE, largest_divisor
from rt3_tvm.schedules.loops import begin_before, loop_of, vectorise
from rt3_tvm.schedules.tasks import BY_LANE_ATTR, by_lane, share_loop
from rt3_tvm.schedules.vector_math import exp_of_negative, tanh

MASKED = -3.4e38
"""Score of the keys that a band hides and of those that only pad a tile."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of attention, and what becomes of a score q.k before the softmax: scaled, capped, biased, hidden.

    Parameters
    ----------
    batch, length, heads, dim
        Of the queries; ``dim`` is that of the keys too.
    scale
        Factor of the scores.
    mask
        What is hidden at compile time; None hides nothing.
    key_bias, score_bias
        (batch or 1, heads or 1) of what is added to all scores of a key, and to each score; None adds nothing.
    kv_heads, v_dim, keys
        Of keys and values where they differ from the queries': heads (a divisor), features of a value, length.
    soft_cap
        c of c * tanh(score / c), before the biases; 0 for none.
    """

    batch: int
    length: int
    heads: int
    dim: int
    scale: float
    mask: StaticMask | None = None
    key_bias: tuple[int, int] | None = None
    score_bias: tuple[int, int] | None = None
    kv_heads: int = 0
    v_dim: int = 0
    keys: int = 0
    soft_cap: float = 0.0
    layout: FeatureMajor = FEATURE_MAJOR

    def __post_init__(self) -> None:
        for name, default in (("kv_heads", self.heads), ("v_dim", self.dim), ("keys", self.length)):
            object.__setattr__(self, name, getattr(self, name) or default)
        if self.mask is None:
            object.__setattr__(self, "mask", StaticMask.none(self.length, self.keys))

    @property
    def flops(self) -> float:
        """Floating-point operations of both products, on whole tiles."""
        return 2.0 * self.batch * self.heads * (self.dim + self.v_dim) * self.mask.pairs * self.layout.token_tile**2

    def hidden(self, score: tirx.Expr, q: tirx.Expr, k: tirx.Expr, value: float) -> tirx.Expr:
        """Return a score, or ``value`` where the key is outside of the band or only pads its tile."""
        left, right, other = self.mask.left, self.mask.right, REAL.const(value)
        if right is not None:
            score = tirx.Select(k <= q + right, score, other)
        if left is not None:
            score = tirx.Select(k >= q - left, score, other)
        return tirx.Select(k < self.keys, score, other) if self.keys % self.layout.token_tile else score

    def capped(self, score: tirx.Expr) -> tirx.Expr:
        """Return a scaled score behind the soft cap."""
        if not self.soft_cap:
            return score * REAL.const(self.scale)
        return REAL.const(self.soft_cap) * tanh(score * REAL.const(self.scale / self.soft_cap))


SOMETHING = 1e-30
"""What a sum of weights begins at."""


def register_rows(cpu: CpuShape, layout: FeatureMajor = FEATURE_MAJOR) -> int:
    """Return the rows times a tile of queries that fill the accumulators: 16 where there are 32 registers, else 8."""
    tile = layout.token_tile
    return (16 if cpu.registers > 16 else 8) * min(cpu.lanes(layout.element), tile) // tile


def piecewise(values: list[int], i: tirx.Var) -> tirx.Expr | int:
    """Return ``values[i]`` as arithmetic: a clamped line where that is what they are, else one comparison for each step."""
    low, high = min(values), max(values)
    if low == high:
        return low
    for offset in {v - j for j, v in enumerate(values)}:
        if all(v == min(max(j + offset, low), high) for j, v in enumerate(values)):
            return tirx.min(tirx.max(i + offset, low), high)
    result: tirx.Expr = tirx.const(values[0], "int32")
    for j in range(1, len(values)):
        if values[j] != values[j - 1]:
            result = tirx.Select(i >= j, tirx.const(values[j], "int32"), result)
    return result


@cache  # TVMScript is parsed anew on every call
def attention(shape: AttentionShape, register_rows: int = 4) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, key_bias, score_bias) -> y.

    q and y are (batch * tiles, heads * dim, 16), k and v (batch * key tiles, kv heads * dim, 16), ``key_bias`` (batch or 1,
    heads or 1, 1, keys), ``score_bias`` (.. * tiles, keys, 16), each query tile's 16 beside each other; biases that the shape
    does not have have one element. ``register_rows``: keys of a register block of scores, and the most features of one of
    the context.
    """
    batch, heads, dim, v_dim, kv_heads, keys = (
        shape.batch, shape.heads, shape.dim, shape.v_dim, shape.kv_heads, shape.keys,
    )  # fmt: skip
    layout, tile, dtype, real = shape.layout, shape.layout.token_tile, shape.layout.element.dtype, REAL.dtype
    zero, masked, something = REAL.const(0.0), REAL.const(MASKED), REAL.const(SOMETHING)
    tiles, key_tiles, widest = layout.tiles(shape.length), layout.tiles(keys), shape.mask.widest
    share = heads // kv_heads
    block = largest_divisor(tile, register_rows)
    rows = largest_divisor(v_dim, register_rows)
    key_batch, key_heads = shape.key_bias or (1, 1)
    score_batch, score_heads = shape.score_bias or (1, 1)
    biased_keys = keys if shape.key_bias else 1
    score_shape = (score_batch * score_heads * tiles, keys, tile) if shape.score_bias else (1, 1, 1)
    firsts, lasts = ([t[side] for t in shape.mask.tiles] for side in (0, 1))

    def first(i: tirx.Var) -> tirx.Expr | int:
        return piecewise(firsts, i)

    def seen(i: tirx.Var) -> tirx.Expr | int:
        return piecewise(lasts, i) - first(i)

    def biased(score: tirx.Expr, key_bias: tirx.Buffer, score_bias: tirx.Buffer, at: tuple) -> tirx.Expr:
        b, h, i, t, key = at
        score, key_ = shape.capped(score), key if keys % tile == 0 else tirx.min(key, keys - 1)
        if shape.key_bias:
            score = score + key_bias[b if key_batch > 1 else 0, h if key_heads > 1 else 0, 0, key_]
        if shape.score_bias:
            row = (b if score_batch > 1 else 0) * score_heads + (h if score_heads > 1 else 0)
            score = score + score_bias[row * tiles + i, key_, t]
        return shape.hidden(score, i * tile + t, key, MASKED)

    @T.inline
    def scores(Q, K, key_bias, score_bias, S, h, b, i):
        """S = biased(K Q^T) of the key tiles that the query tile sees, a register block of keys at a time."""
        for kt, kb in T.grid(seen(i), tile // block):
            with T.sblock("keys"):
                vkt, vkb = T.axis.remap("SS", [kt, kb])
                T.reads(
                    Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                    K[0 : batch * key_tiles, 0 : kv_heads * dim, 0:tile],
                    key_bias[0:key_batch, 0:key_heads, 0, 0:biased_keys],
                    score_bias[0 : score_shape[0], 0 : score_shape[1], 0 : score_shape[2]],
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
                            + K[b * key_tiles + first(i) + vkt, T.floordiv(h, share) * dim + vd, vkb * block + vj]
                            * Q[b * tiles + i, h * dim + vd, vt]
                        )
                for j, t in T.grid(block, tile):
                    with T.sblock("bias"):
                        vj, vt = T.axis.remap("SS", [j, t])
                        S[vkt * tile + vkb * block + vj, vt] = biased(
                            acc[vj, vt],
                            key_bias,
                            score_bias,
                            (b, h, i, vt, (first(i) + vkt) * tile + vkb * block + vj),
                        )

    @T.inline
    def softmax(S, P, total, i):
        """P = exp(S - largest), what is hidden exactly 0; total = their sum.

        A query that only pads its tile may see no key at all, behind the end of a window: its sum begins at SOMETHING, so
        that it becomes 0 and no NaN, which as a key would spoil real queries. A sum of real weights is 1 or more and absorbs it.
        """
        largest = T.sblock_alloc_buffer((tile,), real)
        for c, t in T.grid(seen(i) * tile, tile):
            with T.sblock("max"):
                vc, vt = T.axis.remap("RS", [c, t])
                with T.init():
                    largest[vt] = masked
                largest[vt] = T.max(largest[vt], S[vc, vt])
        for c, t in T.grid(seen(i) * tile, tile):
            with T.sblock("exp"):
                vc, vt = T.axis.remap("SS", [c, t])
                P[vc, vt] = shape.hidden(
                    exp_of_negative(S[vc, vt] - largest[vt]), i * tile + vt, first(i) * tile + vc, 0.0
                )
        for c, t in T.grid(seen(i) * tile, tile):
            with T.sblock("sum"):
                vc, vt = T.axis.remap("RS", [c, t])
                with T.init():
                    total[vt] = something
                total[vt] = total[vt] + P[vc, vt]

    @T.inline
    def context(V, P, total, Y, h, b, i):
        """Y = V P / total, a register block of features at a time."""
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
                for kt, kl, r, t in T.grid(seen(i), tile, rows, tile):
                    with T.sblock("context"):
                        vkt, vkl, vr, vt = T.axis.remap("RRSS", [kt, kl, r, t])
                        with T.init():
                            mix[vr, vt] = zero
                        mix[vr, vt] = (
                            mix[vr, vt]
                            + V[b * key_tiles + first(i) + vkt, T.floordiv(h, share) * v_dim + vdb * rows + vr, vkl]
                            * P[vkt * tile + vkl, vt]
                        )
                for r, t in T.grid(rows, tile):
                    with T.sblock("divide"):
                        vr, vt = T.axis.remap("SS", [r, t])
                        Y[b * tiles + i, h * v_dim + vdb * rows + vr, vt] = mix[vr, vt] / total[vt]

    @T.prim_func(s_tir=True)
    def attention(q: T.handle, k: T.handle, v: T.handle, m: T.handle, s: T.handle, y: T.handle):
        Q = T.match_buffer(q, layout.shape(batch * tiles, heads * dim), dtype)
        K = T.match_buffer(k, layout.shape(batch * key_tiles, kv_heads * dim), dtype)
        V = T.match_buffer(v, layout.shape(batch * key_tiles, kv_heads * v_dim), dtype)
        key_bias = T.match_buffer(m, (key_batch, key_heads, 1, biased_keys), real)
        score_bias = T.match_buffer(s, score_shape, real)
        Y = T.match_buffer(y, layout.shape(batch * tiles, heads * v_dim), dtype)
        for h, b, i in T.grid(heads, batch, tiles):
            with T.sblock("tile"):
                vh, vb, vi = T.axis.remap("SSS", [h, b, i])
                T.reads(
                    Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                    K[0 : batch * key_tiles, 0 : kv_heads * dim, 0:tile],
                    V[0 : batch * key_tiles, 0 : kv_heads * v_dim, 0:tile],
                    key_bias[0:key_batch, 0:key_heads, 0, 0:biased_keys],
                    score_bias[0 : score_shape[0], 0 : score_shape[1], 0 : score_shape[2]],
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
    return func.with_attr(BY_LANE_ATTR, by_lane(cpu, shape.layout, weights, ["Q", "K", "V", "S", "P"]))


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
