"""The steps that schedules are made of: loops by name, vectors, register blocks, sums that begin outside of their loop."""

from collections.abc import Iterable

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV


def loop_of(sch: Schedule, block: str, name: str) -> LoopRV:
    """Return the loop around a block whose variable has a name."""
    loops = {str(sch.get(loop).loop_var.name): loop for loop in sch.get_loops(sch.get_sblock(block))}
    return loops[name]


def vectorise(sch: Schedule, block: str, name: str, lanes: int, registers: Iterable[str] = ()) -> None:
    """Turn a loop into vectors that are unrolled, and unroll the loops ``registers`` around it.

    ``.., r, t`` becomes ``.., r unrolled, t_0 unrolled, t_1 a vector``. What is unrolled has constant indices, so that LLVM
    keeps an accumulator for each of its iterations in a register; as a loop it would go through memory.
    """
    vectors, vector = sch.split(loop_of(sch, block, name), [None, lanes])
    sch.vectorize(vector)
    for loop in (*(loop_of(sch, block, register) for register in registers), vectors):
        sch.unroll(loop)


def begin_before(sch: Schedule, block: str, name: str, registers: Iterable[str] = ()) -> None:
    """Initialise the sums of a block before the loop that they run over, ``registers`` of them unrolled.

    TVM writes the initialisation as a condition inside of the loop; lifted out, the loop has nothing in it but multiply-adds.
    """
    sch.decompose_reduction(sch.get_sblock(block), loop_of(sch, block, name))
    for register in registers:
        sch.unroll(loop_of(sch, f"{block}_init", f"{register}_init"))
