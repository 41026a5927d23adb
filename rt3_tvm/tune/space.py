"""The plans of a matrix: every one is legal by construction.

A trial is one packing with a plan for each number of tokens, because packed weights are stored once for all lengths. More is
offered than what the model of the core chooses from: other numbers of columns an iteration, of register blocks at once, of column
blocks; and the dense kernel where much is kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.few_tokens import STACK_BYTES
from rt3_tvm.schedules.int8_lines import Quantised
from rt3_tvm.schedules.int8_plan import (
    few_cycles,
    few_kernel,
    int8_cycles,
    int8_packings,
    kernels,
    quantised_for,
    split_lines,
)
from rt3_tvm.schedules.layout import FEATURE_MAJOR, INT8, REAL, ElementType
from rt3_tvm.schedules.linear_decisions import (
    LINE_BYTES,
    LONGEST_SUM,
    MAX_TILES,
    LinearDecisions,
    LinearPacking,
    LinearShape,
    MatrixShape,
    linear_cycles,
    padded_kept,
    x_bytes,
)
from rt3_tvm.schedules.linear_plan import LinearPlan, TokenCount, family_of, layout_of, plan_from, whole_shape

ROWS = 16
"""Most rows of a register block that are tried."""
UNROLLS = (1, 2, 4, 8, 16)
"""Kept columns of an iteration."""
MAX_LOADS = 64
"""Multiply-adds by weights of an iteration, at most: beyond, loops leave the caches of instructions."""
PADDED = 0.06
"""Part of the columns that padding may add."""
DENSE_FROM = 0.4
"""Density from which the dense kernel is tried too."""
X_SHARE = 0.5
"""Part of the L2 cache that X of a column block may have."""
STEP = 1.3
"""Factor between the numbers of column blocks that are tried."""
WORTH = 2.5
"""Plans that the model takes to be this many times as slow as the best are left out."""


@dataclass(frozen=True)
class Trial:
    """A packing, and a plan with it for each number of tokens."""

    plans: tuple[LinearPlan, ...]

    @property
    def packing(self) -> LinearPacking:
        """What they share."""
        return self.plans[0].packing


@dataclass(frozen=True)
class Form:
    """What all lengths share: the packing, and whether it is that of the dense matrix."""

    matrix: MatrixShape
    packing: LinearPacking


@dataclass(frozen=True)
class LinearSpace:
    """The plans of a matrix on a core for some numbers of tokens."""

    cpu: CpuShape
    matrix: MatrixShape
    tokens: tuple[TokenCount, ...]
    element: ElementType = REAL

    @cached_property
    def trials(self) -> list[Trial]:
        """All trials, what the model of the core takes to be the fastest first."""
        weighed = [(self.cycles(trial), trial) for form in self._forms() for trial in self._trials(form)]
        weighed.sort(key=lambda pair: pair[0])
        return [trial for cycles, trial in weighed if cycles <= WORTH * weighed[0][0]]

    def cycles(self, trial: Trial) -> float:
        """Return the modelled cycles of a trial over all numbers of tokens, each in parts of its work."""
        return sum(plan_cycles(self.cpu, plan) / plan.tokens.tiles() for plan in trial.plans)

    def _forms(self) -> Iterator[Form]:
        matrix, sparse = self.matrix, self.matrix.kept / self.matrix.cols < DENSE_FROM
        for m in (matrix,) if sparse or matrix.dense else (matrix, MatrixShape.dense_of(matrix.rows, matrix.cols)):
            for packing in KINDS.get(self.element, FLOAT).packings(self.cpu, m, self.element):
                yield Form(m, packing)

    def _trials(self, form: Form) -> Iterator[Trial]:
        """Yield the trials of a packing: with each number of tokens the best plan, then each with its next one."""
        ranked = [self._plans(form, tokens) for tokens in self.tokens]
        if all(ranked):
            for i in range(max(map(len, ranked))):
                yield Trial(tuple(plans[min(i, len(plans) - 1)] for plans in ranked))

    def _plans(self, form: Form, tokens: TokenCount) -> list[LinearPlan]:
        """Return the plans with a packing, the one that the model takes to be the fastest first."""
        kind = KINDS.get(self.element, FLOAT)
        family = family_of(form.matrix, self.element)
        layout, plans = layout_of(self.element, tokens), []
        quads = form.matrix.quads
        read = quantised_for(self.cpu, tokens.length, tokens.batch, quads) if self.element is INT8 else None
        whole = whole_shape(form.matrix, tokens, form.packing, layout, read)
        for parts in kind.splits(whole, read):
            ranked = [kind.ranked(self.cpu, form.packing, part, read) for part in parts]
            for i in range(max(map(len, ranked)) if all(ranked) else 0):
                chosen = [
                    (part.first, part.tiles, options[min(i, len(options) - 1)])
                    for part, options in zip(parts, ranked, strict=True)
                ]
                facts = form.matrix, tokens, layout, form.packing, chosen, self.element
                plans.append(plan_from(family, *facts, quantised=read))
        plans += self._few_int8(form, tokens, whole, read) if read is not None else ()
        plans.sort(key=lambda plan: plan_cycles(self.cpu, plan))
        return [*(self._few(form, tokens) if read is None else ()), *plans]

    def _few_int8(self, form: Form, tokens: TokenCount, whole: LinearShape, read: Quantised) -> Iterator[LinearPlan]:
        """Yield the plan with the kernel of int8 whose vectors are rows, where it can serve the tokens."""
        if tokens.batch == 1 and few_kernel(self.cpu, whole, form.packing, tokens.length):
            facts = form.matrix, tokens, FEATURE_MAJOR, form.packing, [(0, 1, None)], self.element
            yield plan_from("few_token_linear_int8", *facts, quantised=read)

    def _few(self, form: Form, tokens: TokenCount) -> Iterator[LinearPlan]:
        """Yield the plan with the kernel for a handful of tokens, where it can serve them: it reads real activations."""
        compact = tokens.length * form.matrix.cols * REAL.bytes
        few = tokens.batch == 1 and tokens.length <= FEATURE_MAJOR.token_tile // 2
        if few and form.packing.rows in (4, 8, 16) and compact <= STACK_BYTES:
            part = [(0, tokens.tiles(), None)]
            yield plan_from("few_token_linear", form.matrix, tokens, FEATURE_MAJOR, form.packing, part, self.element)


def plan_cycles(cpu: CpuShape, plan: LinearPlan) -> float:
    """Return the modelled cycles of a plan; 0 for the float kernel of a handful of tokens, which the model does not know."""
    if plan.quantised is not None:
        few = few_kernel(cpu, plan.parts[0].shape, plan.packing, plan.tokens.length)
        if few is not None and plan.parts[0].decisions is None:
            return few_cycles(cpu, few)
        return sum(int8_cycles(cpu, plan.int8(part, "none")) for part in plan.parts)
    return sum(linear_cycles(cpu, p.shape, plan.packing, p.decisions) for p in plan.parts if p.decisions)


def packings(cpu: CpuShape, matrix: MatrixShape, element: ElementType) -> Iterator[LinearPacking]:
    """Yield the packings of a matrix."""
    line, longest = LINE_BYTES // element.bytes, LONGEST_SUM.get(element, matrix.cols)
    most = min(matrix.kept, max(1, matrix.cols // line))
    rows = [r for r in range(1, ROWS + 1) if matrix.group % r == 0 and (r == 1 or 2 * r <= cpu.registers)]
    for r, blocks, unroll in product(rows, _steps(most), UNROLLS):
        packing = LinearPacking(r, blocks, unroll)
        padded = padded_kept(matrix.kept, packing)
        short = padded <= longest * blocks and r * unroll <= MAX_LOADS
        if short and padded <= max(matrix.kept + 1, matrix.kept * (1 + PADDED)):
            yield packing


def _steps(most: int) -> list[int]:
    """Return whole numbers from 1 to ``most``, each about STEP times the one before."""
    steps, number = [1], 1.0
    while steps[-1] < most:
        number = max(number * STEP, steps[-1] + 1)
        steps.append(min(most, round(number)))
    return steps


def _splits(whole: LinearShape, _read: Quantised | None) -> Iterator[Sequence[LinearShape]]:
    """Yield the ways to serve the tiles: by one kernel, or by one for whole register blocks and one for the rest."""
    yield [whole]
    first = whole.tiles // MAX_TILES * MAX_TILES
    if 0 < first < whole.tiles:
        yield [whole.part(0, first), whole.part(first, whole.tiles - first)]


def _ranked(
    cpu: CpuShape, packing: LinearPacking, shape: LinearShape, _read: Quantised | None
) -> list[LinearDecisions]:
    """Return the register blocks of a packing that fit the registers, the fastest by the model first."""
    lanes, rows = cpu.lanes(shape.layout.element), packing.rows
    found = []
    for v in range(1, cpu.registers):
        fits = (rows + (rows > 1)) * v + 1 < cpu.registers
        if not (v == 1 or fits) or shape.tokens % (v * lanes) or v * lanes > MAX_TILES * shape.layout.token_tile:
            continue
        for groups in range(1, max(1, (cpu.registers - 2) // (rows * v)) + 1):
            decisions = LinearDecisions(v, groups)
            close = x_bytes(cpu, shape, packing, decisions) <= max(cpu.l1d_bytes, X_SHARE * cpu.l2_bytes)
            if groups <= ROWS // 2 and (shape.rows // rows) % groups == 0 and close and _aligned(v, lanes, shape):
                found.append(decisions)
    return sorted(found, key=lambda d: linear_cycles(cpu, shape, packing, d))


def _aligned(vectors: int, lanes: int, shape: LinearShape) -> bool:
    """Return whether a register block is a part of a token tile, or whole ones."""
    in_tile = max(1, shape.layout.token_tile // lanes)
    return vectors % in_tile == 0 or in_tile % vectors == 0


def _int8_splits(whole: LinearShape, read: Quantised | None) -> Iterator[Sequence[LinearShape]]:
    assert read is not None
    yield split_lines(read.lines, whole)


def _int8_ranked(
    cpu: CpuShape, packing: LinearPacking, shape: LinearShape, read: Quantised | None
) -> list[LinearDecisions]:
    return [k.decisions for k in sorted(kernels(cpu, shape, packing, read=read), key=lambda k: int8_cycles(cpu, k))]


@dataclass(frozen=True)
class Kind:
    """How the plans of an element type are found.

    ``packings``: of a matrix. ``splits``: the ways to serve the tiles. ``ranked``: the register
    blocks of a packing, the fastest by the model first.
    """

    packings: Callable[[CpuShape, MatrixShape, ElementType], Iterator[LinearPacking]]
    splits: Callable[[LinearShape, Quantised | None], Iterable[Sequence[LinearShape]]]
    ranked: Callable[[CpuShape, LinearPacking, LinearShape, Quantised | None], list[LinearDecisions]]


FLOAT = Kind(packings, _splits, _ranked)
KINDS = {
    INT8: Kind(
        lambda cpu, matrix, _element: int8_packings(cpu, matrix),
        _int8_splits,
        _int8_ranked,
    )
}
"""By element type; all others are as floats are."""
