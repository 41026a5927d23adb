"""What a plan costs, learnt from records: boosted trees over its features, on top of the model of the core.

The trees learn by how much a plan's time beside the untuned one's differs from what the model of the core says, so that where
nothing was measured its order stands.
"""

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import LinearPlan
from rt3_tvm.schedules.tuned import Record, plan_of_json
from rt3_tvm.tune.space import plan_cycles

Array = npt.NDArray[np.float64]

FEW_RECORDS = 24
"""Records below which the model of the core is left alone."""
MOST_RECORDS = 6000
"""Records that are learnt from: the last ones."""
TREES, DEPTH, RATE = 80, 5, 0.15


def need_xgboost() -> None:
    """Refuse to go on without the package that learns.

    Raises
    ------
    Rt3Error
        It is not installed.
    """
    if importlib.util.find_spec("xgboost") is None:
        raise Rt3Error("rt3 tune learns with xgboost, which is not installed: pip install 'rt3-tvm[tune]'")


def features(cpu: CpuShape, plan: LinearPlan) -> list[float]:
    """Return what a plan is, in numbers."""
    matrix, packing, element = plan.matrix, plan.packing, plan.element
    part = plan.parts[0]
    vectors, groups = (part.decisions.vectors, part.decisions.groups) if part.decisions else (0, 0)
    tokens = vectors * cpu.lanes(element)
    kept = part.shape.kept / packing.column_blocks
    x_bytes = tokens * matrix.cols / packing.column_blocks * element.bytes
    weights = matrix.rows * part.shape.kept * (element.bytes + 2 / matrix.group)
    return [
        matrix.rows,
        matrix.cols,
        matrix.kept,
        matrix.group if not matrix.dense else 0,
        element.bytes,
        plan.tiles,
        len(plan.parts),
        packing.rows,
        packing.column_blocks,
        packing.unroll,
        packing.rows * packing.unroll,
        vectors,
        groups,
        packing.rows * vectors,
        packing.rows * vectors * groups,
        kept,
        kept / packing.unroll,
        part.shape.kept / matrix.kept,
        x_bytes / cpu.l1d_bytes,
        x_bytes / cpu.l2_bytes,
        weights / cpu.l2_bytes,
        plan.tiles * plan.layout.token_tile * matrix.rows * element.bytes / cpu.l2_bytes,
    ]


class Ranker:
    """Predicts the log of a plan's time over the untuned plan's, up to what is the same for all plans of a task."""

    def __init__(self, cpu: CpuShape) -> None:
        self._cpu = cpu
        self._trees: Any = None

    def learn(self, records: Sequence[Record]) -> None:
        """Learn anew from the records of a core that were measured."""
        usable = [r for r in records if r.ratio is not None and r.text][-MOST_RECORDS:]
        if len(usable) < FEW_RECORDS:
            return
        import xgboost

        rows, targets = [], []
        for record in usable:
            plan, against = (plan_of_json(p, record.task) for p in (record.plan, record.against))
            rows.append(_row(self._cpu, plan))
            assert record.ratio is not None
            targets.append(math.log(record.ratio[1]) - _prior(self._cpu, plan) + _prior(self._cpu, against))
        parameters = {"max_depth": DEPTH, "eta": RATE, "nthread": 1, "verbosity": 0, "subsample": 0.8}
        self._trees = xgboost.train(parameters, xgboost.DMatrix(np.array(rows), np.array(targets)), TREES)

    def __call__(self, plans: Sequence[LinearPlan]) -> Array:
        """Return the predictions of some plans."""
        prior = np.array([_prior(self._cpu, plan) for plan in plans])
        if self._trees is None:
            return prior
        import xgboost

        rows = np.array([_row(self._cpu, plan) for plan in plans])
        return prior + self._trees.predict(xgboost.DMatrix(rows))


@cache
def _row(cpu: CpuShape, plan: LinearPlan) -> tuple[float, ...]:
    return tuple(features(cpu, plan))


@cache
def _prior(cpu: CpuShape, plan: LinearPlan) -> float:
    """Return the log of the modelled cycles; of the kernel of a handful of tokens nothing is known."""
    return math.log(plan_cycles(cpu, plan) or 1.0)
