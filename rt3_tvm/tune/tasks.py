"""What there is to tune in a checkpoint: its matrices, equal ones once, with their part of the time of an inference.

Attention has no task yet: nothing of its kernel is chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rt3_tvm import model as models
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen.elements import level_elements
from rt3_tvm.device import Device
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export.padding import Interface
from rt3_tvm.frontend import import_model
from rt3_tvm.options import SHARES
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import REAL, ElementType
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import LinearPlan, TokenCount, plan_linear
from rt3_tvm.schedules.tuned import LinearTask
from rt3_tvm.transform.annotate_sparsity import linear_uses
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import run_phases, shared_phases
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.space import plan_cycles


@dataclass(frozen=True)
class MatrixTask:
    """A matrix, the numbers of tokens that it serves, and its part of the modelled time of all linear layers.

    ``uses``: calls of an inference, over all lengths, weighted by how often each level runs.
    """

    matrix: MatrixShape
    tokens: tuple[TokenCount, ...]
    threads: int = 1
    element: ElementType = REAL
    uses: float = 1.0
    share: float = 1.0

    @property
    def parts(self) -> tuple[LinearTask, ...]:
        """The task at each number of tokens."""
        return tuple(LinearTask(self.matrix, t, self.element, self.threads) for t in self.tokens)

    def default(self, cpu: CpuShape) -> tuple[LinearPlan, ...]:
        """Return the plans that would be taken untuned."""
        return tuple(plan_linear(cpu, self.matrix, t, self.element) for t in self.tokens)

    def __str__(self) -> str:
        m = self.matrix
        kept = "dense" if m.dense else f"V={m.group}, {m.kept} of {m.cols} columns kept"
        lengths = ", ".join(f"{t.batch} x {t.length}" if t.batch > 1 else str(t.length) for t in self.tokens)
        return f"{m.rows}x{m.cols} {self.element.dtype}, {kept}, tokens {lengths}"


def tasks_of(
    checkpoint: Checkpoint, options: TuneOptions, device: Device, progress: Callable[[str], None] = lambda _: None
) -> list[MatrixTask]:
    """Return the tasks of a checkpoint on a device, the one with the largest part of the time first.

    Raises
    ------
    Rt3Error
        ``shares`` or ``dtype`` are not those of its levels, or not of the core.
    """
    cpu = CpuShape.of(device.cluster)
    elements = level_elements(options.compiled(), checkpoint, device, cpu)
    shares = options.shares or (1 / len(checkpoint.levels),) * len(checkpoint.levels)
    if len(shares) != len(checkpoint.levels):
        raise Rt3Error(f"`shares` {SHARES.write(shares)} %: give one for each of the {len(checkpoint.levels)} levels")
    uses: Uses = {}
    model = checkpoint.dense_model()
    interface = Interface.of(model)
    lengths = sorted(set(options.lengths)) if models.has_length(models.inputs_of(model)) else [1]
    for length in lengths:
        progress(f"import at length {length}")
        imported = import_model(model, options.batch, length, interface)
        called = list(linear_uses(run_phases(imported.mod, shared_phases()), imported.parameters))
        for i, (level, share) in enumerate(zip(checkpoint.levels, shares, strict=True)):
            asked = elements[i], options.keep_float
            context = VariantContext(i, options.batch, length, cpu, imported.parameters, level.matrices, *asked)
            for use in called:
                tokens = uses.setdefault(use.need(context), {})
                tokens[use.tokens] = tokens.get(use.tokens, 0.0) + share / len(lengths)
    return _weighed(uses, options.threads, cpu)


Uses = dict[tuple[MatrixShape, ElementType], dict[TokenCount, float]]
"""How often each matrix is multiplied by, by the number of tokens."""


def _weighed(uses: Uses, threads: int, cpu: CpuShape) -> list[MatrixTask]:
    """Return the tasks of some uses by their part of the modelled time; a handful of tokens counts as a tile."""

    def cycles(matrix: MatrixShape, tokens: TokenCount, element: ElementType) -> float:
        plan = plan_linear(cpu, matrix, tokens, element)
        whole = TokenCount(tokens.batch, plan.layout.token_tile)
        return plan_cycles(cpu, plan) or plan_cycles(cpu, plan_linear(cpu, matrix, whole, element))

    cost = {(m, e): sum(cycles(m, t, e) * n for t, n in tokens.items()) for (m, e), tokens in uses.items()}
    whole = sum(cost.values())
    tasks = [
        MatrixTask(m, tuple(sorted(tokens, key=_order)), threads, e, sum(tokens.values()), cost[m, e] / whole)
        for (m, e), tokens in uses.items()
    ]
    return sorted(tasks, key=lambda task: -task.share)


def _order(tokens: TokenCount) -> tuple[int, int]:
    return tokens.length, tokens.batch


def chosen_tasks(tasks: Sequence[MatrixTask], numbers: Sequence[int] | None) -> list[MatrixTask]:
    """Return the tasks of some numbers, or all.

    Raises
    ------
    Rt3Error
        A number that there is not.
    """
    for number in numbers or ():
        if number >= len(tasks):
            raise Rt3Error(f"`tasks` {number}: there are {len(tasks)}, from 0: see `tasks` list")
    return list(tasks) if numbers is None else [tasks[i] for i in numbers]
