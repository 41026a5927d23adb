"""Products of tensors that are both made at run time: C = A B for a batch of row-major matrices, vectors over columns.

A register block is some rows of A times some vectors of columns of B. Where a side is no multiple of its block the last block
starts early and computes some results twice: all loops have constant bounds, and no column is left to scalar code.
"""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import REAL, ElementType
from rt3_tvm.schedules.loops import begin_before, loop_of, vectorise
from rt3_tvm.schedules.tasks import share_loop


@dataclass(frozen=True)
class BatchIndex:
    """Which matrix of an operand belongs to result ``b``: ``b // divisor % count``, as broadcasting has it."""

    count: int
    divisor: int = 1

    def of(self, b: tirx.Expr) -> tirx.Expr | int:
        """Return the index."""
        return 0 if self.count == 1 else T.floormod(T.floordiv(b, self.divisor), self.count)


@dataclass(frozen=True)
class MatmulShape:
    """Sizes of ``batch`` products (rows, inner) x (inner, columns)."""

    batch: int
    rows: int
    inner: int
    columns: int
    left: BatchIndex
    right: BatchIndex
    element: ElementType = REAL

    @property
    def flops(self) -> int:
        """Floating-point operations of all products."""
        return 2 * self.batch * self.rows * self.inner * self.columns


def register_block(shape: MatmulShape, cpu: CpuShape) -> tuple[int, int]:
    """Return rows and columns whose sums stay in registers: at most 8 (of 16 registers: 4) by 2 vectors."""
    columns = 2 * cpu.lanes(shape.element)
    while columns > shape.columns:
        columns //= 2
    return min(shape.rows, 8 if cpu.registers > 16 else 4), columns


@cache  # TVMScript is parsed anew on every call
def matmul(shape: MatmulShape, block: tuple[int, int]) -> tirx.PrimFunc:
    """Return the kernel (a (left, rows, inner), b (right, inner, columns)) -> c (batch, rows, columns).

    ``block``: see :func:`register_block`.
    """
    batch, rows, inner, columns = shape.batch, shape.rows, shape.inner, shape.columns
    height, width = block
    dtype, real, zero = shape.element.dtype, REAL.dtype, REAL.const(0.0)

    def start(i: tirx.Var, size: int, extent: int) -> tirx.Expr:
        return i * size if extent % size == 0 else tirx.min(i * size, extent - size)

    @T.prim_func(s_tir=True)
    def matmul(a: T.handle, b: T.handle, c: T.handle):
        A = T.match_buffer(a, (shape.left.count, rows, inner), dtype)
        B = T.match_buffer(b, (shape.right.count, inner, columns), dtype)
        C = T.match_buffer(c, (batch, rows, columns), real)
        # Columns outside of rows: a panel of B is read for all rows while it is near.
        for i, n, m in T.grid(batch, -(-columns // width), -(-rows // height)):
            with T.sblock("block"):
                vi, vn, vm = T.axis.remap("SSS", [i, n, m])
                T.reads(A[0 : shape.left.count, 0:rows, 0:inner], B[0 : shape.right.count, 0:inner, 0:columns])
                T.writes(C[vi, 0:rows, 0:columns])
                acc = T.sblock_alloc_buffer((height, width), real)
                for k, r, t in T.grid(inner, height, width):
                    with T.sblock("multiply"):
                        vk, vr, vt = T.axis.remap("RSS", [k, r, t])
                        with T.init():
                            acc[vr, vt] = zero
                        acc[vr, vt] = (
                            acc[vr, vt]
                            + A[shape.left.of(vi), start(vm, height, rows) + vr, vk]
                            * B[shape.right.of(vi), vk, start(vn, width, columns) + vt]
                        )
                for r, t in T.grid(height, width):
                    with T.sblock("store"):
                        vr, vt = T.axis.remap("SS", [r, t])
                        C[vi, start(vm, height, rows) + vr, start(vn, width, columns) + vt] = acc[vr, vt]

    return matmul


def schedule_matmul(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Vectors over columns, the register block unrolled; its zeros stand before the sum."""
    sch = Schedule(func)
    for name in ("multiply", "store"):
        width = int(sch.get(loop_of(sch, name, "t")).extent)
        vectorise(sch, name, "t", min(lanes, width), registers=("r",))  # a narrow result has narrow vectors
    begin_before(sch, "multiply", "k", registers=("r", "t_0"))
    share_loop(sch, loop_of(sch, "block", "i"))  # products: blocks of one may overlap
    return sch.mod["main"]
