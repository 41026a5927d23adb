"""Policies that choose the clock: Linux's governors, RT3's split of the charge, and a trace of what a device did.

A policy answers one question (``decide``): which operating point now, and until when or until which charge. Those that look at
the load see its mean over their period, and that period is made of whole periods of the workload. Sources of the rules: Linux
drivers/cpufreq/cpufreq_ondemand.c, cpufreq_conservative.c, kernel/sched/cpufreq_schedutil.c.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rt3_tvm import rt3
from rt3_tvm.device import Cluster, frequency_name, parse_frequency
from rt3_tvm.errors import Rt3Error, choices

SAMPLING_S = 0.1
"""Period of the policies that look at the load, rounded up to whole periods of the workload."""
UP_THRESHOLD, DOWN_THRESHOLD, FREQUENCY_STEP = 0.80, 0.20, 0.05
"""Linux's defaults of ondemand (up) and conservative (up, down, step as a part of the top frequency)."""
SCHEDUTIL_MARGIN = 1.25


@dataclass(frozen=True)
class Decision:
    """An operating point by its index, until a time in s or until this part of the charge is left.

    ``look_s``: when a policy looks at the load again, where that may change although the clock does not.
    """

    index: int
    until_s: float = math.inf
    until_charge: float = 0.0
    look_s: float = math.inf


class Governor(Protocol):
    """A policy; the decisions of one ``by_load`` repeat once the state of the simulation does."""

    @property
    def by_load(self) -> bool:
        """Whether decisions depend on the load."""

    def decide(self, now: float, charge: float, index: int, busy: Callable[[int], float]) -> Decision:
        """Return what to do at ``now`` s with ``charge`` left, in (0, 1], at operating point ``index``.

        ``busy``: the part of the time that the workload keeps the core busy at an operating point.
        """


@dataclass(frozen=True)
class Fixed:
    """One operating point for ever: ``performance`` and ``powersave``."""

    index: int
    by_load: bool = False

    def decide(self, now: float, charge: float, index: int, busy: Callable[[int], float]) -> Decision:
        """Return it."""
        return Decision(self.index)


@dataclass(frozen=True)
class ByCharge:
    """RT3's policy: each operating point, from the highest down, spends its share of the charge."""

    indices: tuple[int, ...]
    shares: tuple[float, ...]
    by_load: bool = False

    def decide(self, now: float, charge: float, index: int, busy: Callable[[int], float]) -> Decision:
        """Return the first whose share is not spent."""
        left = 1.0
        for i, share in zip(self.indices[:-1], self.shares[:-1], strict=True):
            left -= share
            if charge > left + 1e-12:
                return Decision(i, until_charge=left)
        return Decision(self.indices[-1])


@dataclass(frozen=True)
class Trace:
    """What a device did: operating points by the time they begin; the last one holds."""

    times: tuple[float, ...]
    indices: tuple[int, ...]
    by_load: bool = False

    def decide(self, now: float, charge: float, index: int, busy: Callable[[int], float]) -> Decision:
        """Return the operating point of the trace."""
        i = bisect_right(self.times, now + 1e-9) - 1
        return Decision(self.indices[i], self.times[i + 1] if i + 1 < len(self.times) else math.inf)


@dataclass(frozen=True)
class ByLoad:
    """A policy that looks at the load once a period: ``rule`` (Hz table, index, how busy) returns the wanted Hz."""

    hz: tuple[float, ...]
    rule: Callable[[tuple[float, ...], int, float], float]
    period_s: float
    by_load: bool = True

    def decide(self, now: float, charge: float, index: int, busy: Callable[[int], float]) -> Decision:
        """Return the lowest operating point that is at least as fast as wanted."""
        if now == 0.0:
            return Decision(index, self.period_s)
        wanted = self.rule(self.hz, index, busy(index))
        fast_enough = [i for i, f in enumerate(self.hz) if f >= wanted - 0.5]
        chosen = fast_enough[-1] if fast_enough else 0
        look = now + self.period_s
        return Decision(chosen, math.inf if chosen == index else look, look_s=look)


def _ondemand(hz: tuple[float, ...], index: int, busy: float) -> float:
    return hz[0] if busy > UP_THRESHOLD else hz[-1] + busy * (hz[0] - hz[-1])


def _conservative(hz: tuple[float, ...], index: int, busy: float) -> float:
    step = FREQUENCY_STEP * hz[0]
    if busy > UP_THRESHOLD:
        return min(hz[0], max(hz[index] + step, hz[max(0, index - 1)]))
    # Down by at least one point, or a step that is finer than the table would never get there.
    return max(hz[-1], min(hz[index] - step, hz[min(len(hz) - 1, index + 1)])) if busy < DOWN_THRESHOLD else hz[index]


def _schedutil(hz: tuple[float, ...], index: int, busy: float) -> float:
    return SCHEDUTIL_MARGIN * busy * hz[index]  # being busy counts at the clock it ran at


RULES = {"ondemand": _ondemand, "conservative": _conservative, "schedutil": _schedutil}
NAMES = ("conservative", "ondemand", "performance", "powersave", "rt3", "schedutil")


def governor(
    name: str,
    hz: Sequence[float],
    levels_hz: Sequence[float],
    shares: Sequence[float] = rt3.SHARES,
    workload_period_s: float = 0.0,
) -> Governor:
    """Return a policy by its name.

    Parameters
    ----------
    hz
        The device's frequencies, descending.
    levels_hz, shares
        For ``rt3``: the frequencies it goes through, and the part of the charge each may spend.
    workload_period_s
        s from one inference to the next; 0 for back to back.
    """
    if name == "performance":
        return Fixed(0)
    if name == "powersave":
        return Fixed(len(hz) - 1)
    if name == "rt3":
        if len(shares) != len(levels_hz):
            raise Rt3Error(
                f"governor rt3: {len(shares)} shares for {len(levels_hz)} frequencies: pass `shares`, one for each"
            )
        if any(s <= 0 for s in shares) or abs(sum(shares) - 1.0) > 1e-6:
            raise Rt3Error(f"`shares` {','.join(f'{s:g}' for s in shares)}: each above 0, 1 (or 100) in all")
        return ByCharge(tuple(list(hz).index(f) for f in levels_hz), tuple(shares))
    if name in RULES:
        periods = max(1, math.ceil(SAMPLING_S / workload_period_s - 1e-9)) if workload_period_s else 1
        return ByLoad(tuple(hz), RULES[name], periods * (workload_period_s or SAMPLING_S))
    raise Rt3Error(f"unknown governor '{name}': choose from {choices(NAMES)}, or pass `trace`, a file")


def read_trace(path: Path, cluster: Cluster, hz: Sequence[float]) -> Trace:
    """Return the trace in a file: a line for each change, seconds and frequency (``3600,1.4GHz``), ascending from 0.

    ``hz``: the frequencies to choose from. Empty lines, lines that begin with #, and a heading are passed over.

    Raises
    ------
    Rt3Error
        It goes back in time, or names a frequency that the device does not have: with the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Rt3Error(f"`trace` {path}: {error}") from error
    times: list[float] = []
    indices: list[int] = []
    known = {round(f): i for i, f in enumerate(hz)}
    for number, line in enumerate(lines, 1):
        cells = line.replace(",", " ").split()
        if not cells or cells[0].startswith("#") or (not times and cells[0].lower().startswith(("s", "t"))):
            continue
        where = f"{path}:{number}"
        try:
            seconds, frequency = float(cells[0]), parse_frequency("".join(cells[1:]))
        except (ValueError, Rt3Error):
            raise Rt3Error(f"{where}: '{line.strip()}': expected seconds and a frequency, as 3600,1.4GHz") from None
        if not times and seconds != 0.0:
            raise Rt3Error(f"{where}: a trace begins at 0 s, not at {cells[0]}")
        if not math.isfinite(seconds) or (times and seconds <= times[-1]):
            raise Rt3Error(
                f"{where}: {cells[0]} s comes after {times[-1] if times else 0:g} s: a trace goes forward in time"
            )
        if round(frequency) not in known:
            cluster.operating_point(frequency, where)  # says which there are
            raise Rt3Error(f"{where}: no power is known at {frequency_name(frequency)}")
        if not indices or known[round(frequency)] != indices[-1]:
            times.append(seconds)
            indices.append(known[round(frequency)])
    if not times:
        raise Rt3Error(f"{path}: no line with seconds and a frequency")
    return Trace(tuple(times), tuple(indices))
