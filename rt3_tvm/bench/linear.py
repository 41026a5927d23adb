"""``rt3 bench linear``: one ``pattern_linear`` against the best dense linear layer found here."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rt3_tvm.bench.kernel import aligned
from rt3_tvm.bench.linear_kernel import LinearCase, LinearKernel
from rt3_tvm.bench.rivals import installed_rivals
from rt3_tvm.pattern import QUAD, PatternRecipe, PatternShape, SparseMatrix, cut_backbone, cut_patterns
from rt3_tvm.schedules.linear_plan import LinearPlan
from rt3_tvm.timing import Timing, time_interleaved

PATTERNS = 64
ROUNDS = 15


@dataclass(frozen=True)
class LinearResult:
    """What was measured: Timing of each contestant by name, the sparsity that was reached, the largest error."""

    case: LinearCase
    sparsity: float
    ours: Timing
    dense: dict[str, Timing]
    max_abs_err: float
    gflops: float
    plan: LinearPlan

    @property
    def dense_name(self) -> str:
        """The fastest dense rival."""
        return min(self.dense, key=lambda name: self.dense[name].median)

    def to_json(self) -> dict[str, object]:
        """Return the result for ``--json``."""
        best = self.dense[self.dense_name]
        return {
            "ours_ms": self.ours.median,
            "dense_ms": best.median,
            "dense_name": self.dense_name,
            "speedup": best.median / self.ours.median,
            "sparsity": self.sparsity,
            "group": self.case.group,
            "max_abs_err": self.max_abs_err,
            "rows": self.case.rows,
            "cols": self.case.cols,
            "tokens": self.case.tokens,
            "gflops": self.gflops,
            "ours_spread_ms": [self.ours.low, self.ours.high],
            "dense_spread_ms": [best.low, best.high],
            "dtype": self.plan.element.dtype,
            "kernel": str(self.plan),
            "packing": self.plan.packing.__dict__,
            "decisions": [p.decisions.__dict__ for p in self.plan.parts if p.decisions],
        }


def sparse_weight(weight: np.ndarray, case: LinearCase) -> SparseMatrix:
    """Return patterns of one block row per group that reach the sparsity as closely as whole columns can."""
    backbone = cut_backbone(weight, 0.0, case.rows)
    shape = PatternShape(case.group, case.cols, case.group, QUAD if case.quads else 1)
    return cut_patterns(weight, backbone, PatternRecipe(shape, PATTERNS), 1.0 - case.sparsity)


def bench_linear(case: LinearCase, rounds: int = ROUNDS, rivals: list[str] | None = None) -> LinearResult:
    """Time one layer on one thread against every dense rival that is installed, on the same inputs."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((case.rows, case.cols)) / np.sqrt(case.cols)).astype(np.float32)
    bias = rng.standard_normal(case.rows).astype(np.float32)
    x = rng.standard_normal((case.tokens, case.cols)).astype(np.float32)
    if case.group:
        matrix = sparse_weight(weight, case)
        columns, valid = matrix.group_columns()
        weight = weight * matrix.mask()
        sparsity = 1.0 - matrix.density
    else:
        columns = np.arange(case.cols, dtype=np.int32)[None]
        valid, sparsity = np.ones_like(columns, dtype=np.bool_), 0.0
    contestants: dict[str, Callable[[], object]] = {
        name: rival.linear(aligned(x), aligned(weight), aligned(bias), 1)
        for name, rival in installed_rivals(rivals).items()
    }
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        ours = LinearKernel(case, columns, valid, weight, bias, x, Path(folder))
        ours()
        error = np.abs(ours.result() - (x.astype(np.float64) @ weight.T.astype(np.float64) + bias)).max()
        times = time_interleaved({"rt3": ours, **contestants}, rounds)
    mine = times.pop("rt3")
    flops = 2.0 * case.rows * case.cols * case.tokens * (1.0 - sparsity)
    return LinearResult(
        case,
        sparsity,
        mine,
        times,
        float(error),
        flops / mine.median / 1e6,
        ours.plan,
    )
