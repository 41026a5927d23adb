"""The schedule of everything that has no family of its own: vectors over the innermost axis where it is long enough.

Correct for any TE-made function, fast for elementwise ones. A kernel that shows up in a profile deserves its own file.
"""

from contextlib import suppress

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from rt3_tvm.schedules.tasks import share_loop


def schedule_elementwise(func: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Inline every producer that can be, then vectorise the innermost ``lanes`` iterations of spatial blocks."""
    sch = Schedule(func)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get_consumers(block):
            with suppress(ScheduleError):  # a reduction: it stays a loop nest of its own
                sch.compute_inline(block)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    for block in blocks:
        loops = sch.get_loops(block)
        kinds = {var.iter_type for var in sch.get(block).iter_vars}
        if not loops or kinds != {tirx.IterVar.DataPar}:
            continue
        extents = [int(sch.get(loop).extent) for loop in loops]
        total = 1
        for extent in extents:
            total *= extent
        # Only an innermost axis of whole vectors is worth it: fused axes would index with divisions.
        if extents[-1] % lanes == 0:
            loops[-1], vector = sch.split(loops[-1], [None, lanes])
            sch.vectorize(vector)
        shared = next((loop for loop in loops if int(sch.get(loop).extent) > 1), None)
        if len(blocks) == 1 and shared is not None:
            share_loop(sch, shared)
    return sch.mod["main"]
