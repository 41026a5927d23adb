"""``rt3 inspect --ops``: where the time of one inference goes, kernel by kernel, measured on this machine."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime import load

RUNS = 15


@dataclass(frozen=True)
class OpRow:
    """A kernel of one variant: how often it runs, its median ms in one inference, its share, and GFLOP/s of kept weights.

    ``gflops`` is 0 for kernels that are not linear layers.
    """

    symbol: str
    family: str
    calls: int
    ms: float
    share: float
    gflops: float


def measure_ops(path: Path, level: int, length: int | None = None) -> list[OpRow]:
    """Return the kernels of a level, the costliest first."""
    with load(path) as bundle:
        length = length or bundle.max_length
        if not 1 <= length <= bundle.max_length:
            raise Rt3Error(f"--seq-len {length}: this bundle takes 1 to {bundle.max_length}")
        bundle.set_level(level)
        facts = bundle.metadata
        ids = np.zeros((bundle.max_batch, length), np.int64)
        samples = [bundle.profile(**{bundle.inputs[0]: ids}) for _ in range(RUNS)]
        return _rows(facts, level, length, [statistics.median(s) for s in zip(*samples, strict=True)])


def _rows(facts: dict[str, Any], level: int, length: int, seconds: list[float]) -> list[OpRow]:
    compiled = min(v["length"] for v in facts["variants"] if v["length"] >= length)
    steps = next(v["steps"] for v in facts["variants"] if (v["level"], v["length"]) == (level, compiled))
    times: dict[int, list[float]] = {}
    flops: dict[int, float] = {}
    for (kernel, matrix, tokens), took in zip(steps, seconds, strict=True):
        times.setdefault(kernel, []).append(took)
        if matrix:
            row = facts["matrices"][matrix]
            kept = row["shape"][0] * row["shape"][1] * row["levels"][level]["density"]
            flops[kernel] = flops.get(kernel, 0.0) + 2.0 * kept * tokens
    total = sum(seconds)
    rows = [
        OpRow(
            facts["kernels"][k]["symbol"], facts["kernels"][k]["family"], len(t), 1e3 * sum(t), sum(t) / total,
            flops.get(k, 0.0) / sum(t) / 1e9 if sum(t) else 0.0,
        )
        for k, t in times.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda r: -r.ms)
