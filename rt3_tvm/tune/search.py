"""Which plans of a task are tried next, and which are measured once more to decide."""

from collections.abc import Iterable, Sequence
from functools import cache, cached_property

import numpy as np

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import LinearPlan
from rt3_tvm.schedules.tuned import FINAL, TRIAL, Record, form_of, plan_of_json, plan_text, plan_to_json
from rt3_tvm.tune.cost import Ranker
from rt3_tvm.tune.space import LinearSpace, Trial
from rt3_tvm.tune.tasks import MatrixTask

AT_RANDOM = 4
"""One in this many trials is any plan of the space: the model learns from what it would not have tried."""
FINALISTS = 5
"""Packings that are measured once more."""
LOSS_WEIGHT = 5.0
"""How much more a loss at a number of tokens counts than a gain at another, in who is a finalist: it is not taken with one."""


class TaskSearch:
    """One task: its space, what was tried, what is on its way."""

    def __init__(self, number: int, task: MatrixTask, cpu: CpuShape, records: Iterable[Record], seed: int) -> None:
        self.number, self.task, self.cpu = number, task, cpu
        self.default = Trial(task.default(cpu))
        self._against = [plan_to_json(plan) for plan in self.default.plans]
        self._random = np.random.default_rng(seed + number)
        self._records: list[list[Record]] = [[] for _ in task.parts]
        self._offered: set[Trial] = set()
        self.on_its_way = 0
        self.undecided = False
        for record in records:
            self.take(record)

    @cached_property
    def space(self) -> list[Trial]:
        """All trials, what the model of the core takes to be the fastest first."""
        task = self.task
        return LinearSpace(self.cpu, task.matrix, task.tokens, task.element).trials

    def take(self, record: Record) -> None:
        """Take a record into account, if it is of this task and beside what is untuned today."""
        for part, records, against in zip(self.task.parts, self._records, self._against, strict=True):
            if record.task == part and record.current and record.against == against:
                records.append(record)
                self.undecided = record.stage == TRIAL or not self.decided

    @property
    def begun(self) -> bool:
        """Whether there is any record of it."""
        return any(self._records)

    @property
    def tried(self) -> int:
        """Plans that were tried at every number of tokens, the untuned one not counted."""
        return min(self._count(i) for i in range(len(self._records)))

    def _count(self, i: int) -> int:
        texts = {r.text for r in self._records[i] if r.stage == TRIAL}
        return len(texts - {plan_text(self._against[i])})

    @property
    def decided(self) -> bool:
        """Whether there is a final measurement at every number of tokens."""
        return all(any(r.stage == FINAL for r in records) for records in self._records)

    def offer(self, count: int, ranker: Ranker) -> list[Trial]:
        """Return the next trials: what the ranker takes to be the fastest, and some at random."""
        known = [{r.text for r in records} for records in self._records]
        left = [trial for trial in self.space if trial not in self._offered and not self._known(trial, known)]
        if not left:
            return []
        cost = sum(ranker([trial.plans[i] for trial in left]) for i in range(len(self.task.parts)))
        order = [int(i) for i in np.argsort(cost, kind="stable")]
        any_of = self._random.choice(len(left), size=min(count // AT_RANDOM, len(left)), replace=False)
        chosen = list(dict.fromkeys([*(int(i) for i in any_of), *order]))[:count]
        trials = [left[i] for i in chosen]
        self._offered.update(trials)
        return trials

    @staticmethod
    def _known(trial: Trial, known: Sequence[set[str]]) -> bool:
        return all(_text(plan) in texts for plan, texts in zip(trial.plans, known, strict=True))

    def finalists(self) -> list[Trial]:
        """Return what is to be measured once more: of the best packings the best plan for each number of tokens."""
        best = [_best_by_form(records) for records in self._records]
        shared = set.intersection(*(set(by_form) for by_form in best))
        score = {form: _score([by_form[form][0] for by_form in best]) for form in shared}
        found = []
        for form in sorted(shared, key=lambda f: score[f])[:FINALISTS]:
            records = [by_form[form][1] for by_form in best]
            pairs = zip(records, self.task.parts, strict=True)
            found.append(Trial(tuple(plan_of_json(r.plan, part) for r, part in pairs)))
        return [trial for trial in found if trial != self.default]

    @property
    def best(self) -> float:
        """The least part of the untuned plans' time that a trial took, over all numbers of tokens."""
        best = [_best_by_form(records) for records in self._records]
        shared = set.intersection(*(set(by_form) for by_form in best))
        return min((float(np.mean([by_form[form][0] for by_form in best])) for form in shared), default=1.0)

    def has_default(self, i: int) -> bool:
        """Return whether the untuned plan for a number of tokens was measured."""
        return any(r.text == plan_text(self._against[i]) and r.ratio for r in self._records[i])

    def ratio(self, i: int, plan: LinearPlan | None) -> float:
        """Return the part of the untuned time that a plan takes by its last final measurement; 1 for none."""
        text = _text(plan) if plan is not None else ""
        return next(
            (r.ratio[1] for r in self._records[i][::-1] if r.stage == FINAL and r.ratio and r.text == text), 1.0
        )

    def against(self, i: int) -> dict:
        """Return the untuned plan for a number of tokens, as a record has it."""
        return self._against[i]


def _score(ratios: Sequence[float]) -> float:
    """Return what orders packings from the best, by the least ratio of a plan at each number of tokens."""
    return float(np.mean(ratios)) + LOSS_WEIGHT * max(0.0, max(ratios) - 1.0)


@cache
def _text(plan: LinearPlan) -> str:
    return plan_text(plan_to_json(plan))


def _best_by_form(records: Iterable[Record]) -> dict[str, tuple[float, Record]]:
    """Return for each packing the least ratio of a trial, and its record."""
    best: dict[str, tuple[float, Record]] = {}
    for record in records:
        if record.ratio is not None:
            form = form_of(record.plan)
            if form not in best or record.ratio[1] < best[form][0]:
                best[form] = (record.ratio[1], record)
    return best
