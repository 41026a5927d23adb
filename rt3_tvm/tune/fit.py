"""``rt3 tune --fit``: the constants of the model of a core, fitted to what was measured on it.

What matters is the order of the plans of one matrix, so errors count most beside their mean over the plans of a task; the mean
itself counts a little, so that the constants stay cycles.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from rt3_tvm import device as devices
from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules.cpu import CoreCost, CpuShape
from rt3_tvm.schedules.layout import ElementType
from rt3_tvm.schedules.linear_plan import LinearPlan
from rt3_tvm.schedules.tuned import CoreId, LinearTask, Record, plan_of_json
from rt3_tvm.schedules.tuning_log import TuningLogs
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.space import plan_cycles

FITTED = ("fma", "load", "broadcast", "offset", "l2_line", "visit", "iteration")
"""Constants that are fitted; the others say what a core can hold."""
LEAST, MOST = 0.1, 100.0
"""Cycles by which a constant is moved at first where it is none, and that none of them exceeds."""
FEW_RECORDS = 50
"""Records without which nothing is fitted."""
MEAN_WEIGHT = 0.3
"""Weight of the mean error of a task beside that of the differences in it."""
OUTLIER = 0.1
"""Error from which on it counts less: of such plans the model lacks something that no constant mends."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """The constants of an element type before and after.

    ``errors``: medians of how far modelled times of a task lie from measured ones, up to their mean; ``losses``: means of how
    much slower the plan that the model likes best is than the fastest that was measured.
    """

    element: ElementType
    records: int
    tasks: int
    costs: tuple[CoreCost, CoreCost]
    errors: tuple[float, float]
    losses: tuple[float, float]

    def lines(self) -> Iterator[str]:
        """Yield what there is to say, the constants as they stand in ``schedules/cpu.py`` last."""
        what = f"{self.element.dtype}: {self.records} records of {self.tasks} tasks"
        yield f"{what}: median error {self.errors[0]:.1%} before, {self.errors[1]:.1%} after"
        yield f"  the plan that the model takes loses {self.losses[0]:.1%} to the best that was tried, then {self.losses[1]:.1%}"
        for name in FITTED:
            before, after = (getattr(cost, name) for cost in self.costs)
            yield f"  {name:10s} {before:6.2f} -> {after:6.2f}"
        fitted = ", ".join(f"{name}={getattr(self.costs[1], name):.2f}" for name in FITTED)
        yield f"  CoreCost({fitted})"


def fit_log(path: Path, options: TuneOptions) -> Iterator[str]:
    """Yield what fitting the model of a device's core to a log, or a folder of logs, gives.

    Raises
    ------
    Rt3Error
        The log has too few records of the core, or scipy is not installed.
    """
    device = devices.load(options.device)
    if options.cluster is not None:
        device = device.with_cluster(options.cluster)
    cpu = CpuShape.of(device.cluster)
    logs = TuningLogs.of(CoreId.of(device.cluster.core, cpu), path)
    yield from logs.ignored
    fits = fit_records(logs.records, cpu)
    if not fits:
        raise Rt3Error(
            f"{path}: fewer than {FEW_RECORDS} records of {logs.core.core} with a time and a clock: try more plans"
        )
    for fit in fits:
        yield from fit.lines()


def fit_records(records: Iterable[Record], cpu: CpuShape) -> list[Fit]:
    """Return what fits the records of a core, for each element type of which there are enough."""
    by_element: dict[ElementType, list[Record]] = {}
    for record in records:
        plan = plan_of_json(record.plan, record.task)
        if record.ratio is not None and record.device.get("hz") and plan_cycles(cpu, plan):
            by_element.setdefault(plan.multiplied, []).append(record)
    return [_Fitting(cpu, e, found).fit() for e, found in by_element.items() if len(found) >= FEW_RECORDS]


class _Fitting:
    """Records of one element type, and how far a model is from them."""

    def __init__(self, cpu: CpuShape, element: ElementType, records: Sequence[Record]) -> None:
        self.cpu, self.element = cpu, element
        ratios: dict[tuple[LinearTask, LinearPlan], list[float]] = {}
        untuned: dict[LinearTask, list[float]] = {}
        for r in records:
            assert r.seconds is not None and r.ratio is not None
            ratios.setdefault((r.task, plan_of_json(r.plan, r.task)), []).append(r.ratio[1])
            untuned.setdefault(r.task, []).append(r.seconds / r.ratio[1] * float(r.device["hz"]))
        best = {key: median(found) * median(untuned[key[0]]) for key, found in ratios.items()}
        self.plans = [plan for _, plan in best]
        self.measured = np.log(list(best.values()))
        numbers = {task: i for i, task in enumerate(dict.fromkeys(task for task, _ in best))}
        self.tasks = np.array([numbers[task] for task, _ in best])

    def fit(self) -> Fit:
        """Return the constants that fit best."""
        try:
            from scipy.optimize import least_squares
        except ImportError as error:
            raise Rt3Error("fitting needs scipy: pip install 'rt3-tvm[tune]'") from error
        before = self.cpu.cost(self.element)
        start = np.array([getattr(before, name) for name in FITTED])
        scale = np.maximum(start, LEAST)
        found = least_squares(
            lambda x: self.residuals(self.cost(x)),
            start + LEAST,
            bounds=(0.0, MOST),
            x_scale=scale,
            loss="soft_l1",
            f_scale=OUTLIER,
        )
        after = self.cost(found.x)
        errors, losses = zip(*((self.error(cost), self.loss(cost)) for cost in (before, after)), strict=True)
        return Fit(self.element, len(self.plans), int(self.tasks.max()) + 1, (before, after), errors, losses)

    def cost(self, x: Array) -> CoreCost:
        """Return the constants of a point."""
        fitted: dict[str, Any] = {name: float(v) for name, v in zip(FITTED, x, strict=True)}
        return replace(self.cpu.cost(self.element), **fitted)

    def differences(self, cost: CoreCost) -> Array:
        """Return the logs of modelled over measured times."""
        cpu = self.cpu.with_cost(self.element, cost)
        return np.log([plan_cycles(cpu, plan) for plan in self.plans]) - self.measured

    def _split(self, cost: CoreCost) -> tuple[Array, Array]:
        """Return the mean difference of each task, and what each plan differs from that of its own."""
        differences = self.differences(cost)
        means = np.bincount(self.tasks, differences) / np.bincount(self.tasks)
        return means, differences - means[self.tasks]

    def residuals(self, cost: CoreCost) -> Array:
        """Return what is made small."""
        means, rest = self._split(cost)
        return np.concatenate([rest, MEAN_WEIGHT * means])

    def error(self, cost: CoreCost) -> float:
        """Return the median error of a plan beside the others of its task."""
        return float(median(np.abs(self._split(cost)[1])))

    def loss(self, cost: CoreCost) -> float:
        """Return by how much the plan that the model likes best is slower than the fastest, in the mean over tasks."""
        modelled, losses = self.differences(cost) + self.measured, []
        for task in range(int(self.tasks.max()) + 1):
            mine = np.flatnonzero(self.tasks == task)
            liked = mine[np.argmin(modelled[mine])]
            losses.append(float(np.exp(self.measured[liked] - self.measured[mine].min()) - 1.0))
        return sum(losses) / len(losses)
