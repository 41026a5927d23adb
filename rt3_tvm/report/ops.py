"""``rt3 inspect --ops``: where the time of one inference goes, kernel by kernel, measured on this machine."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rt3_tvm.bench.peak import peak_gflops
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.runtime import load

RUNS = 15


@dataclass(frozen=True)
class OpRow:
    """A kernel of one variant: how often it runs, its median ms in one inference and its share of that.

    ``gflop`` counts kept weights only and is 0 where a family does not count; ``mbytes`` counts every argument once (weights,
    inputs, outputs); ``of_peak`` is GFLOP/s over the multiply-add peak of the cores it ran on, measured in the same call, or None
    where no C compiler can build the program that measures it.
    """

    symbol: str
    family: str
    calls: int
    ms: float
    share: float
    gflop: float
    mbytes: float
    of_peak: float | None

    @property
    def gflops(self) -> float:
        """GFLOP/s of kept weights."""
        return self.gflop / self.ms * 1e3 if self.ms else 0.0

    @property
    def gbytes_per_s(self) -> float:
        """GB/s of all arguments."""
        return self.mbytes / self.ms if self.ms else 0.0


def measure_ops(path: Path, level: int, length: int | None = None, threads: int = 1) -> list[OpRow]:
    """Return the kernels of a level, the costliest first."""
    with load(path) as bundle:
        length = length or bundle.max_length
        if not 1 <= length <= bundle.max_length:
            raise Rt3Error(f"`length` {length}: this bundle takes 1 to {bundle.max_length}")
        bundle.set_level(level)
        bundle.set_threads(threads)
        facts = bundle.metadata
        inputs = bundle.zeros(length)
        samples = [bundle.profile(**inputs) for _ in range(RUNS)]
        return _rows(facts, level, length, [statistics.median(s) for s in zip(*samples, strict=True)], threads)


def _rows(facts: dict[str, Any], level: int, length: int, seconds: list[float], threads: int) -> list[OpRow]:
    compiled = min(v["length"] for v in facts["variants"] if v["length"] >= length)
    steps = next(v["steps"] for v in facts["variants"] if (v["level"], v["length"]) == (level, compiled))
    sums: dict[int, list[float]] = {}  # calls, seconds, flops, bytes
    for (kernel, _matrix, flops, size), took in zip(steps, seconds, strict=True):
        row = sums.setdefault(kernel, [0, 0.0, 0.0, 0.0])
        for i, value in enumerate((1, took, flops, size)):
            row[i] += value
    total = sum(seconds)
    try:
        peak = peak_gflops() * threads
    except (Rt3Error, JobError):
        peak = None
    rows = []
    for kernel, (calls, took, flops, size) in sums.items():
        names = facts["kernels"][kernel]
        of_peak = flops / took / 1e9 / peak if took and peak else None
        rows.append(
            OpRow(
                names["symbol"], names["family"], int(calls), 1e3 * took, took / total, flops / 1e9, size / 1e6, of_peak
            )
        )
    return sorted(rows, key=lambda r: -r.ms)
