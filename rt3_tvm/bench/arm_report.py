"""A row of the ladder as text, for terminals and pages: thousands of instructions, counted; cycles beside them, modelled."""

from rt3_tvm.bench import arm_kinds as kinds
from rt3_tvm.bench.arm import KernelCount, Ladder

HEADS = {
    kinds.MULTIPLY_ADD: "mul-add",
    kinds.VECTOR: "vector",
    kinds.VECTOR_LOAD: "vload",
    kinds.SCALAR_LOAD: "sload",
    kinds.STACK_STORE: "spill",
    kinds.STORE: "store",
    kinds.MOVE: "move",
    kinds.INTEGER: "int",
    kinds.BRANCH: "branch",
    kinds.OTHER: "other",
}
"""What stands above each kind in a table."""
IN_LOOPS = "loops"
"""Head of the column of instructions, not executions, that store to the stack in innermost loops."""


def heads(ladder: Ladder) -> list[str]:
    """Return what stands above the cells of a row."""
    return ["all", *HEADS.values(), IN_LOOPS, *(["kcycles"] if ladder.model else [])]


def cells(kernel: KernelCount, ladder: Ladder) -> list[str]:
    """Return the figures of a kernel, of a family, or of all."""
    counts = [kernel.instructions, *(kernel.kinds.get(kind, 0) for kind in HEADS)]
    row = [thousands(n) for n in counts] + [str(kernel.stack_stores_in_loops or "")]
    return row + ([thousands(kernel.cycles)] if ladder.model else [])


def thousands(value: float | None) -> str:
    """Return a number in thousands; nothing for none at all."""
    return f"{value / 1e3:.{0 if value >= 1e5 else 1}f}" if value else ""
