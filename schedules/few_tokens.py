"""``few_token_linear``: a linear layer for a handful of tokens, vectors over the rows of a group.

The same packed weights as ``pattern_linear`` and ``dense_linear``, so that they are stored once. With one token a tile of 16
would compute 15 lanes of padding; here a vector holds the weights of the rows that share a column, and each token is a
broadcast. Bound by reading the weights, which may be narrower than float32; X is not, and so sums are float32 too.
"""

from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import STACK_BYTES
from rt3_tvm.schedules.layout import REAL, ElementType
from rt3_tvm.schedules.linear_decisions import LinearPacking, LinearShape, largest_divisor
from rt3_tvm.schedules.loops import begin_before, loop_of
from rt3_tvm.schedules.tasks import share_loop
from rt3_tvm.schedules.vector_math import ANY_UNIT, VectorUnit, activation_of

MAX_TOKENS = {4: 2, 8: 8}
"""Tokens up to which this beats a padded tile, by the rows of a register block (`benchmarks/run.py few`, AVX-512); other
numbers of rows are no whole vectors."""

CHAINS = 8
"""Independent sums: partial ones over columns, tokens, and row blocks worked on at once."""


def few_tokens(packing: LinearPacking, shape: LinearShape, batch: int, length: int) -> bool:
    """Return whether this kernel serves a packing and a number of tokens; their inputs must fit the stack."""
    compact = length * shape.cols * REAL.bytes
    return batch == 1 and length <= MAX_TOKENS.get(packing.rows, 0) and compact <= STACK_BYTES


@cache  # TVMScript is parsed anew on every call
def few_token_linear(
    shape: LinearShape,
    packing: LinearPacking,
    tokens: int,
    activation: str,
    element: ElementType = REAL,
    unit: VectorUnit = ANY_UNIT,
) -> tirx.PrimFunc:
    """Return the kernel with the buffers of ``linear_algorithm``; ``tokens`` of the first tile are real.

    ``element``: of the values; X is in the real layout.

    ::

        compact[tokens, cols] = x
        for row block (several at once):
            acc[row blocks, parts, tokens, rows] += values[k] * compact[column of k]   for all column blocks and k
            y = act(bias + the sum over parts), and zeros in the lanes that pad the tile
    """
    act = activation_of(activation, unit)
    layout, tile = shape.layout, shape.layout.token_tile
    real, zero = REAL.dtype, REAL.const(0.0)
    cols, rows, blocks, parts = shape.cols, packing.rows, packing.column_blocks, packing.unroll
    row_blocks, kept = shape.rows // rows, shape.kept // blocks
    gi = largest_divisor(row_blocks, CHAINS // (parts * tokens))
    outer, share, tables = row_blocks // gi, shape.group // rows, shape.rows // shape.group
    x_size, offset_dtype = shape.tokens * cols, shape.offset_dtype

    def total(acc: tirx.Buffer, g: tirx.Var, t: tirx.Expr, r: tirx.Var) -> tirx.Expr:
        result = acc[g, 0, t, r]
        for p in range(1, parts):
            result = result + acc[g, p, t, r]
        return result

    def widened(value: tirx.Expr) -> tirx.Expr:
        return value if element is REAL else T.Cast(real, value)

    @T.prim_func(s_tir=True)
    def few_token_linear(x: T.handle, v: T.handle, o: T.handle, b: T.handle, y: T.handle):
        X = T.match_buffer(x, (x_size,), real)
        values = T.match_buffer(v, (blocks, row_blocks, kept, rows), element.dtype)
        offsets = T.match_buffer(o, (blocks, tables, kept), offset_dtype)
        bias = T.match_buffer(b, (row_blocks, rows), real)
        Y = T.match_buffer(y, layout.shape(shape.tiles, row_blocks * rows), real)
        compact = T.sblock_alloc_buffer((tokens, cols), real)
        for t, c in T.grid(tokens, cols):
            with T.sblock("compact"):
                vt, vc = T.axis.remap("SS", [t, c])
                compact[vt, vc] = X[vc * tile + vt]
        for rb in range(outer):
            with T.sblock("rows"):
                vr = T.axis.spatial(outer, rb)
                T.reads(
                    compact[0:tokens, 0:cols],
                    values[0:blocks, 0:row_blocks, 0:kept, 0:rows],
                    offsets[0:blocks, 0:tables, 0:kept],
                    bias[0:row_blocks, 0:rows],
                )
                T.writes(Y[0, vr * gi * rows : vr * gi * rows + gi * rows, 0:tile])
                acc = T.sblock_alloc_buffer((gi, parts, tokens, rows), real)
                for cb, k, p, g, t, r in T.grid(blocks, kept // parts, parts, gi, tokens, rows):
                    with T.sblock("multiply"):
                        vc = T.axis.reduce(blocks, cb)
                        vk = T.axis.reduce(kept // parts, k)
                        vp, vg, vt, vv = T.axis.remap("SSSS", [p, g, t, r])
                        with T.init():
                            acc[vg, vp, vt, vv] = zero
                        acc[vg, vp, vt, vv] = (
                            acc[vg, vp, vt, vv]
                            + widened(values[vc, vr * gi + vg, vk * parts + vp, vv])
                            * compact[
                                vt,
                                T.shift_right(
                                    T.Cast("int32", offsets[vc, T.floordiv(vr * gi + vg, share), vk * parts + vp]),
                                    tile.bit_length() - 1,
                                ),
                            ]
                        )
                for g, r, t in T.grid(gi, rows, tile):
                    with T.sblock("finish"):
                        vg, vv, vt = T.axis.remap("SSS", [g, r, t])
                        Y[0, (vr * gi + vg) * rows + vv, vt] = T.if_then_else(
                            vt < tokens,
                            act(bias[vr * gi + vg, vv] + total(acc, vg, T.min(vt, tokens - 1), vv)),
                            zero,
                        )

    return few_token_linear


def schedule_few_tokens(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Vectors over rows, everything around them unrolled, so that accumulators live in registers."""
    sch = Schedule(func)
    # The rows of a register block lie beside each other in memory: one load is the weights of a column, whole vectors of them.
    sch.vectorize(loop_of(sch, "multiply", "r"))
    # Partial sums, tokens and row blocks are independent chains: enough of them hide the latency of a multiply-add.
    for name in ("p", "g", "t"):
        sch.unroll(loop_of(sch, "multiply", name))
    begin_before(sch, "multiply", "cb", registers=("g", "p", "t"))
    for name in ("g", "r", "t"):  # which lanes are tokens is known once this is unrolled
        sch.unroll(loop_of(sch, "finish", name))
    share_loop(sch, loop_of(sch, "rows", "rb"))
    return sch.mod["main"]
