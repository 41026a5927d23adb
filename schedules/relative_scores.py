"""Scores of relative positions: what a query has in common with the position of each key, seen from the query.

A model multiplies its queries by all positions at once, (queries, dim) x (dim, positions), and then shifts row q of the result
so that key k stands where position ``shift * (queries - q) + k`` did (Transformer-XL, arXiv 1901.02860; Funnel, arXiv
2006.03236). Here a task is a head and a tile of queries: it computes the positions that its queries see, and writes them along
diagonals into the layout that attention adds to its scores. Nothing is moved by itself.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL, FeatureMajor
from rt3_tvm.schedules.linear_decisions import SMALL_FILE
from rt3_tvm.schedules.loops import begin_before, loop_of, vectorise
from rt3_tvm.schedules.tasks import share_loop

ACCUMULATORS, FEW_ACCUMULATORS, MOST_POSITIONS = 16, 8, 8
"""Vectors of a register block where there are 32 registers, and where there are 16; its positions, each with a pointer."""


@dataclass(frozen=True)
class RelativeShape:
    """Sizes of relative scores, and what becomes of them: (score + segment) * gate * factor + bias.

    Parameters
    ----------
    batch, queries, heads, dim
        Of the queries.
    positions, keys
        How many positions there are, and how many keys a query sees of them.
    shift
        By how many positions the next query stands further back; 0: all see the same ones.
    factor
        Of the scores.
    shared
        Whether all sequences have the same positions.
    segments, gate, bias
        (batch or 1, heads or 1) of which of two scores of a query is added for a key, of what scores are multiplied by, and of
        what is added in the end; None for none.
    """

    batch: int
    queries: int
    heads: int
    dim: int
    positions: int
    keys: int
    shift: int = 0
    factor: float = 1.0
    shared: bool = True
    segments: tuple[int, int] | None = None
    gate: tuple[int, int] | None = None
    bias: tuple[int, int] | None = None
    layout: FeatureMajor = FEATURE_MAJOR

    def __post_init__(self) -> None:
        last = self.shift * self.queries + self.keys - 1
        assert last < self.positions, f"position {last} of {self.positions}"

    @property
    def tiles(self) -> int:
        """Token tiles of a sequence of queries."""
        return self.layout.tiles(self.queries)

    @property
    def position_tiles(self) -> int:
        """Token tiles of the positions of all sequences."""
        return (1 if self.shared else self.batch) * self.layout.tiles(self.positions)

    def span(self, block: int) -> int:
        """Return the positions that the queries of a tile see, in whole register blocks."""
        seen = self.keys + self.shift * (self.layout.token_tile - 1)
        return -(-seen // block) * block

    def flops(self, block: int) -> float:
        """Floating-point operations, on whole tiles and register blocks."""
        return 2.0 * self.batch * self.heads * self.tiles * self.layout.token_tile * self.span(block) * self.dim

    def tiled(self, of: tuple[int, int] | None) -> tuple[int, int, int]:
        """Return the shape of a buffer with an element for each score; one element where there is none."""
        return (of[0] * of[1] * self.tiles, self.keys, self.layout.token_tile) if of else (1, 1, 1)

    def row(self, of: tuple[int, int], b: tirx.Expr, h: tirx.Expr, i: tirx.Expr) -> tirx.Expr:
        """Return the first index of such a buffer."""
        return ((b if of[0] > 1 else 0) * of[1] + (h if of[1] > 1 else 0)) * self.tiles + i


def position_block(shape: RelativeShape, cpu: CpuShape) -> int:
    """Return the positions of a register block."""
    vectors = shape.layout.token_tile // min(cpu.lanes(REAL), shape.layout.token_tile)
    held = FEW_ACCUMULATORS if cpu.registers <= SMALL_FILE else ACCUMULATORS
    return max(1, min(held // vectors, MOST_POSITIONS))


@cache  # TVMScript is parsed anew on every call
def relative_scores(shape: RelativeShape, block: int) -> tirx.PrimFunc:
    """Return the kernel (q, r, flags, segments, gate, bias) -> y (batch * heads * tiles, keys, 16).

    q is (batch * tiles, heads * dim, 16), r (tiles of positions, heads * dim, 16); ``flags``, ``gate`` and ``bias`` are
    (.. * tiles, keys, 16), ``segments`` (batch * heads * tiles, 2, 16): of a query the score that is added where a flag is 0, and
    where it is 1. What the shape does not have has one element. ``block``: see :func:`position_block`.
    """
    batch, heads, dim, keys, shift = shape.batch, shape.heads, shape.dim, shape.keys, shape.shift
    layout, tile, dtype, zero = shape.layout, shape.layout.token_tile, REAL.dtype, REAL.const(0.0)
    tiles, position_tiles, span = shape.tiles, shape.position_tiles, shape.span(block)
    own_tiles, factor = 0 if shape.shared else layout.tiles(shape.positions), REAL.const(shape.factor)
    flags_of, gate_of, bias_of = map(shape.tiled, (shape.segments, shape.gate, shape.bias))
    segments_of = (batch * heads * tiles, 2, tile) if shape.segments else (1, 1, 1)

    def position(i: tirx.Expr, p: tirx.Expr) -> tirx.Expr:
        """Return the p-th position that a tile sees; queries that only pad it see some that there are."""
        first = shift * (shape.queries - (tile - 1)) - i * (shift * tile)
        return tirx.max(tirx.min(first + p, shape.positions - 1), 0)

    def ended(score: tirx.Expr, buffers: tuple, at: tuple) -> tirx.Expr:
        (flags, segments, gate, bias), (b, h, i, k, u) = buffers, at
        if shape.segments:
            own = (b * heads + h) * tiles + i
            flag = flags[shape.row(shape.segments, b, h, i), k, u]
            score = score + tirx.Select(flag > REAL.const(0.5), segments[own, 1, u], segments[own, 0, u])
        if shape.gate:
            score = score * gate[shape.row(shape.gate, b, h, i), k, u]
        if shape.factor != 1.0:
            score = score * factor
        return score + bias[shape.row(shape.bias, b, h, i), k, u] if shape.bias else score

    @T.prim_func(s_tir=True)
    def relative_scores(q: T.handle, r: T.handle, f: T.handle, s: T.handle, g: T.handle, m: T.handle, y: T.handle):
        Q = T.match_buffer(q, layout.shape(batch * tiles, heads * dim), dtype)
        R = T.match_buffer(r, layout.shape(position_tiles, heads * dim), dtype)
        flags = T.match_buffer(f, flags_of, dtype)
        segments = T.match_buffer(s, segments_of, dtype)
        gate = T.match_buffer(g, gate_of, dtype)
        bias = T.match_buffer(m, bias_of, dtype)
        Y = T.match_buffer(y, (batch * heads * tiles, keys, tile), dtype)
        for h, b, i in T.grid(heads, batch, tiles):
            with T.sblock("task"):
                vh, vb, vi = T.axis.remap("SSS", [h, b, i])
                T.reads(
                    Q[0 : batch * tiles, 0 : heads * dim, 0:tile],
                    R[0:position_tiles, 0 : heads * dim, 0:tile],
                    flags[0 : flags_of[0], 0 : flags_of[1], 0 : flags_of[2]],
                    segments[0 : segments_of[0], 0 : segments_of[1], 0 : segments_of[2]],
                    gate[0 : gate_of[0], 0 : gate_of[1], 0 : gate_of[2]],
                    bias[0 : bias_of[0], 0 : bias_of[1], 0 : bias_of[2]],
                )
                T.writes(Y[(vb * heads + vh) * tiles + vi, 0:keys, 0:tile])
                S = T.sblock_alloc_buffer((span, tile), dtype)
                for p in range(span // block):
                    with T.sblock("positions"):
                        vp = T.axis.spatial(span // block, p)
                        T.reads(
                            Q[vb * tiles + vi, vh * dim : vh * dim + dim, 0:tile],
                            R[0:position_tiles, vh * dim : vh * dim + dim, 0:tile],
                        )
                        T.writes(S[vp * block : vp * block + block, 0:tile])
                        acc = T.sblock_alloc_buffer((block, tile), dtype)
                        for d, j, u in T.grid(dim, block, tile):
                            with T.sblock("score"):
                                vd, vj, vu = T.axis.remap("RSS", [d, j, u])
                                with T.init():
                                    acc[vj, vu] = zero
                                acc[vj, vu] = (
                                    acc[vj, vu]
                                    + R[
                                        vb * own_tiles + T.floordiv(position(vi, vp * block + vj), tile),
                                        vh * dim + vd,
                                        T.floormod(position(vi, vp * block + vj), tile),
                                    ]
                                    * Q[vb * tiles + vi, vh * dim + vd, vu]
                                )
                        for j, u in T.grid(block, tile):
                            with T.sblock("keep"):
                                vj, vu = T.axis.remap("SS", [j, u])
                                S[vp * block + vj, vu] = acc[vj, vu]
                for k, u in T.grid(keys, tile):
                    with T.sblock("shift"):
                        vk, vu = T.axis.remap("SS", [k, u])
                        T.reads(
                            S[0:span, 0:tile],
                            flags[0 : flags_of[0], 0 : flags_of[1], 0 : flags_of[2]],
                            segments[0 : segments_of[0], 0 : segments_of[1], 0 : segments_of[2]],
                            gate[0 : gate_of[0], 0 : gate_of[1], 0 : gate_of[2]],
                            bias[0 : bias_of[0], 0 : bias_of[1], 0 : bias_of[2]],
                        )
                        T.writes(Y[(vb * heads + vh) * tiles + vi, vk, vu])
                        Y[(vb * heads + vh) * tiles + vi, vk, vu] = ended(
                            S[vk + shift * (tile - 1 - vu), vu], (flags, segments, gate, bias), (vb, vh, vi, vk, vu)
                        )

    return relative_scores


def schedule_relative_scores(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over queries everywhere, a block of positions in registers."""
    sch = Schedule(func)
    vectorise(sch, "score", "u", lanes, registers=("j",))
    begin_before(sch, "score", "d", registers=("j", "u_0"))
    vectorise(sch, "keep", "u", lanes, registers=("j",))
    vectorise(sch, "shift", "u", lanes)
    share_loop(sch, loop_of(sch, "task", "h"))
    return sch.mod["main"]
