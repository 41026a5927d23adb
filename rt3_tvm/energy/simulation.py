"""A battery, a workload and a policy over time: event by event, exact in energy, no time step.

Between two changes of the clock inferences repeat with one period, so that any number of them is one event. Policies that look at
the load, and dispatchers that remember, end in a fixed point or a cycle; one that has begun to repeat is multiplied, not walked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rt3_tvm.energy.dispatchers import Dispatcher, Table, Walk
from rt3_tvm.energy.governors import Decision, Governor

EPSILON = 1e-9
MOST_SEGMENTS = 2_000_000
"""More changes of the clock than a trace of years at one a second: something is wrong."""


@dataclass(frozen=True)
class Workload:
    """What runs: for each operating point the level it takes, and the s of each level there.

    Parameters
    ----------
    watts, idle_w
        W at each operating point while an inference runs, and between inferences.
    level_of
        For each operating point the index of the level that the level table names.
    seconds
        [operating point][level]: s of one inference.
    period_s
        s from one inference to the next; 0 for back to back. What arrives while another still runs is skipped.
    deadline_s
        s; 0 for none.
    """

    watts: tuple[float, ...]
    idle_w: float
    level_of: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    period_s: float = 0.0
    deadline_s: float = 0.0

    def busy(self, index: int) -> float:
        """Return the part of the time that the workload keeps an operating point busy."""
        took = self.seconds[index][self.level_of[index]]
        if not self.period_s:
            return 1.0
        return took / (self.period_s * self.periods(took))

    def periods(self, took: float) -> int:
        """Return the periods from one inference of so many s to the next that can begin."""
        return max(1, math.ceil(took / self.period_s - EPSILON)) if self.period_s else 1


@dataclass(frozen=True)
class Segment:
    """A stretch at one operating point: s, index of the operating point, level and J left at its end, deadlines missed in it.

    ``mixed``: many short stretches of a cycle, of which the first operating point and level are given.
    """

    start: float
    end: float
    index: int
    level: int
    joules_left: float
    missed: int
    mixed: bool = False


@dataclass
class Outcome:
    """What came of a charge.

    ``served``: inferences by level; ``late``: those that ended after the deadline; ``skipped``: never begun, because one before
    still ran; ``switches``: inferences at another level than the one before.
    """

    served: list[int]
    late: int = 0
    skipped: int = 0
    switches: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    segments: list[Segment] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """Inferences that ended."""
        return sum(self.served)

    @property
    def missed(self) -> int:
        """Deadlines missed: late or skipped."""
        return self.late + self.skipped


class _Battery:
    """The state of a simulation."""

    def __init__(
        self, joules: float, workload: Workload, dispatcher: Dispatcher, levels: int, horizon_s: float
    ) -> None:
        self.workload, self.dispatcher = workload, dispatcher
        self.full, self.left, self.now, self.horizon = joules, joules, 0.0, horizon_s
        self.arrival = 0  # index of the next inference to begin, in periods
        self.running, self.remaining, self.began = (
            -1,
            0.0,
            0.0,
        )  # level of the inference in flight, its part to go, its start
        self.last = -1  # level of the inference that began last
        self.busy_s = 0.0  # while an inference ran
        self.outcome = Outcome([0] * levels)

    @property
    def over(self) -> bool:
        return self.left <= self.full * 1e-12 or self.now >= self.horizon - EPSILON

    def run(self, index: int, until_s: float, until_joules: float) -> None:
        """Run at one operating point until a time, or until a charge is left."""
        workload, watts, seconds = self.workload, self.workload.watts[index], self.workload.seconds[index]
        walk = Walk(self.dispatcher, index)
        until_s = min(until_s, self.horizon)
        while self.now < until_s - EPSILON and self.left > until_joules + self.full * 1e-12:
            if self.running < 0:
                begin = self.arrival * workload.period_s if workload.period_s else self.now
                if begin > self.now + EPSILON:
                    self._spend(min(begin, until_s) - self.now, workload.idle_w, until_joules)
                    continue
                cycle = walk.cycle(self.now)
                if cycle and self._run_many(cycle, seconds, watts, until_s, until_joules):
                    continue
                walk.levels.append(self._begin(index))
            took = seconds[self.running]
            spent = self._spend(min(self.remaining * took, until_s - self.now), watts, until_joules)
            self.busy_s += spent
            self.remaining -= spent / took
            if self.remaining <= EPSILON:
                self._finish()

    def _begin(self, index: int) -> int:
        level = self.dispatcher.take(index, self.now)
        self.outcome.switches += self.last not in {-1, level}
        self.running = self.last = level
        self.remaining, self.began = 1.0, self.now
        self.arrival += 1
        return level

    def _spend(self, seconds: float, watts: float, until_joules: float) -> float:
        """Let time pass, no longer than the charge allows; return the s that passed."""
        if watts > 0.0:
            seconds = min(seconds, (self.left - until_joules) / watts)
        self.now += seconds
        self.left -= seconds * watts
        return seconds

    def _finish(self) -> None:
        self.outcome.served[self.running] += 1
        self.dispatcher.finish(self.running, self.now - self.began)
        self._judge(self.now - self.began, 1)
        self.running = -1
        if self.workload.period_s:
            due = math.ceil(self.now / self.workload.period_s - EPSILON)
            self.outcome.skipped += max(0, due - self.arrival)
            self.arrival = max(self.arrival, due)

    def _judge(self, took: float, count: int) -> None:
        if self.workload.deadline_s and took > self.workload.deadline_s * (1 + EPSILON):
            self.outcome.late += count

    def _run_many(
        self, levels: Sequence[int], seconds: Sequence[float], watts: float, until_s: float, until_joules: float
    ) -> bool:
        """Run as many whole cycles of inferences at these levels as fit, as one event; return whether there were any.

        ``seconds``: of an inference at each level.
        """
        workload, busy = self.workload, sum(seconds[level] for level in levels)
        periods = sum(workload.periods(seconds[level]) for level in levels)
        cycle = periods * workload.period_s if workload.period_s else busy
        joules = watts * busy + workload.idle_w * (cycle - busy)
        fit = min((until_s - self.now) / cycle, (self.left - until_joules) / joules)
        count = math.floor(fit + EPSILON)
        if count < 1:
            return False
        self.arrival += count * periods
        self.now = self.arrival * workload.period_s if workload.period_s else self.now + count * cycle
        self.left -= count * joules
        self.busy_s += count * busy
        self.dispatcher.shift(count * cycle)
        self._count_many(levels, seconds, count)
        return True

    def _count_many(self, levels: Sequence[int], seconds: Sequence[float], count: int) -> None:
        """Count what comes of so many cycles."""
        o = self.outcome
        for before, level in pairwise((levels[-1], *levels)):
            o.switches += count * (before != level)
            o.served[level] += count
            o.skipped += count * (self.workload.periods(seconds[level]) - 1)
            self._judge(seconds[level], count)
        # The first of them follows what was before, not the last of a cycle.
        o.switches += (self.last not in {-1, levels[0]}) - (levels[-1] != levels[0])
        self.last = levels[-1]

    def key(self, index: int) -> tuple[object, ...]:
        """Return what the future depends on, but for the charge: operating point, inference in flight, dispatcher."""
        phase = self.now - (self.arrival * self.workload.period_s if self.workload.period_s else self.now)
        flight = (self.running, round(self.remaining, 6), round(self.now - self.began, 6)) if self.running >= 0 else ()
        return (index, round(phase, 6), self.dispatcher.state(self.now), *flight)

    def counters(self) -> tuple[float, ...]:
        """Return everything that grows from one cycle to the next."""
        o = self.outcome
        return (self.now, self.left, self.arrival, self.began, o.late, o.skipped, o.switches, *o.served)

    def advance(self, before: tuple[float, ...], times: int) -> None:
        """Let the change of the counters since ``before`` happen so many times again."""
        now, left, arrival, began, *counts = (times * (b - a) for a, b in zip(before, self.counters(), strict=True))
        self.now, self.left, self.began = self.now + now, self.left + left, self.began + began
        self.arrival += int(arrival)
        self.dispatcher.shift(now)
        late, skipped, switches, *served = map(int, counts)
        o = self.outcome
        o.late, o.skipped, o.switches = o.late + late, o.skipped + skipped, o.switches + switches
        o.served = [n + more for n, more in zip(o.served, served, strict=True)]


class _Load:
    """How busy the workload keeps an operating point: what a policy sees that looks at the load.

    Where the level may change although the clock does not, it is what was measured there last, and the policy looks again.
    """

    def __init__(self, battery: _Battery) -> None:
        self.battery, self.measured = battery, dict[int, float]()

    def __call__(self, index: int) -> float:
        return self.measured.get(index, self.battery.workload.busy(index))

    def varies(self, index: int) -> bool:
        """Return whether inferences at an operating point may keep it more or less busy."""
        return self.battery.workload.period_s > 0.0 and self.battery.dispatcher.steady(index) is None

    def until(self, decision: Decision) -> float:
        """Return when the policy is asked again."""
        return min(decision.until_s, decision.look_s) if self.varies(decision.index) else decision.until_s

    def run(self, index: int, until_s: float, until_joules: float) -> None:
        """Run at an operating point, and measure."""
        start, busy = self.battery.now, self.battery.busy_s
        self.battery.run(index, until_s, until_joules)
        if self.varies(index) and self.battery.now > start:
            self.measured[index] = (self.battery.busy_s - busy) / (self.battery.now - start)


def spend_charge(
    joules: float,
    workload: Workload,
    governor: Governor,
    horizon_s: float = math.inf,
    dispatcher: Dispatcher | None = None,
) -> Outcome:
    """Return what a charge is good for.

    Parameters
    ----------
    joules
        The charge.
    horizon_s
        s after which the simulation ends although charge is left.
    dispatcher
        Who says which level an inference takes; None: the workload's level table.
    """
    levels = max(max(workload.level_of) + 1, len(workload.seconds[0]))
    battery = _Battery(joules, workload, dispatcher or Table(workload.level_of), levels, horizon_s)
    load = _Load(battery)
    segments = battery.outcome.segments
    seen: dict[tuple[object, ...], tuple[float, ...]] = {}
    index = 0
    while not battery.over:
        assert len(segments) < MOST_SEGMENTS
        decision = governor.decide(battery.now, battery.left / joules, index, load)
        index, until_s = decision.index, load.until(decision)
        start, missed = battery.now, battery.outcome.missed
        if governor.by_load and math.isfinite(until_s):
            key, now = battery.key(index), battery.counters()
            if key in seen:
                before = seen.pop(key)
                times = _repetitions(before, now, battery)
                if times > 0:
                    battery.advance(before, times)
                    segments.append(_segment(battery, start, index, missed, mixed=True))
                    continue
            seen[key] = now
        load.run(index, until_s, decision.until_charge * joules)
        segments.append(_segment(battery, start, index, missed))
    battery.outcome.seconds, battery.outcome.joules = battery.now, joules - max(0.0, battery.left)
    return battery.outcome


def _repetitions(before: Sequence[float], now: Sequence[float], battery: _Battery) -> int:
    """Return how many more whole cycles the charge and the time allow."""
    seconds, joules = now[0] - before[0], before[1] - now[1]
    fit = min(now[1] / joules if joules > 0 else math.inf, (battery.horizon - now[0]) / seconds)
    return max(0, math.floor(fit) - 1)


def _segment(battery: _Battery, start: float, index: int, missed: int, mixed: bool = False) -> Segment:
    level = battery.dispatcher.current(index)
    return Segment(start, battery.now, index, level, max(0.0, battery.left), battery.outcome.missed - missed, mixed)
