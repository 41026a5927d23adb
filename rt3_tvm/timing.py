"""Interleaved timing: rivals take turns in one run, so that a noisy machine is noisy for all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median over rounds, extremes, mean and standard deviation."""

    median: float
    mean: float
    low: float
    high: float
    deviation: float

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Timing":
        """Return the statistics of a list of times."""
        return cls(
            statistics.median(milliseconds),
            statistics.fmean(milliseconds),
            min(milliseconds),
            max(milliseconds),
            statistics.pstdev(milliseconds),
        )


def time_calls(call: Callable[[], object], repeat: int, number: int) -> Timing:
    """Return the time of a call: ``repeat`` rounds of ``number`` calls each, after one call to warm up."""
    call()
    rounds = []
    for _ in range(repeat):
        start = time.perf_counter()
        for _ in range(number):
            call()
        rounds.append((time.perf_counter() - start) / number * 1e3)
    return Timing.of(rounds)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, round_seconds: float = 0.02
) -> dict[str, Timing]:
    """Return the times of rivals that take turns.

    In each round every rival makes one call that is not timed, so that it finds its own data in the caches rather than its
    predecessor's, then as many timed calls as fill ``round_seconds``.
    """
    number = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        number[name] = max(1, min(1000, round(round_seconds / max(1e-7, time.perf_counter() - start))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(number[name]):
                call()
            times[name].append((time.perf_counter() - start) / number[name] * 1e3)
    return {name: Timing.of(t) for name, t in times.items()}
