"""Times of the plans of a library on a device, taken in turns with the plan that would be taken untuned."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

import numpy as np
import tvm

from rt3_tvm.tune.build import Array, Library

STATE = "rt3.device_state"
"""Function of our own server: JSON of the cluster, the frequency that is held, the temperature."""

PID = "rt3.device_pid"
"""Function of our own server: number of the process that serves the session."""

BOARD = "rt3.board"
"""Function of our own server: JSON of the state, what the process runs code for, and the frequencies that the cluster shows."""

HOLD = "rt3.hold"
"""Function of our own server: hold a frequency in Hz until the session ends or another one is asked for."""


@dataclass(frozen=True)
class Pace:
    """How a batch is timed: rounds, and seconds of each plan in a round."""

    rounds: int
    seconds: float


TRIALS, FINALS = Pace(7, 0.004), Pace(45, 0.006)
"""Of plans that are tried, and of those that are measured once more to decide."""

PLACES = 3
"""Sets of arrays, each on pages of its own. Rounds go through them, and through lines of a page where arrays begin: what a cache
holds depends on both, and a bundle has its arrays elsewhere again."""
PAGE_BYTES = 4096
TABLE = "offsets"

DISTURBED, FEWEST = 1.15, 3
"""Times its floor that a plan takes in a round in which something else was at work: where arrays lie changes less. Quiet rounds
without which there is nothing to go by."""
ENOUGH, MOST = 0.6, 4
"""Part of the rounds that are to be quiet, and how many times as many are tried for that."""


@dataclass(frozen=True)
class PlanTimes:
    """Seconds of a call of one plan, round by round, and of the first plan of the batch in the same rounds."""

    seconds: tuple[float, ...]
    against: tuple[float, ...]

    @cached_property
    def quiet(self) -> list[tuple[float, float]]:
        """Both times of the rounds in which nothing else was at work; of all where there are no such rounds."""
        mine, other = (DISTURBED * _floor(times) for times in (self.seconds, self.against))
        rounds = list(zip(self.seconds, self.against, strict=True))
        found = [(a, b) for a, b in rounds if a <= mine and b <= other]
        return found if len(found) >= FEWEST else rounds

    @property
    def median(self) -> float:
        """Seconds of a call in quiet rounds."""
        return median(seconds for seconds, _ in self.quiet)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Quartiles of its time over the first one's in the same round, of quiet ones."""
        low, middle, high = quantiles([a / b for a, b in self.quiet], n=4, method="inclusive")
        return low, middle, high


def _floor(times: Sequence[float]) -> float:
    """Return the time that one round in ten stays below."""
    return sorted(times)[len(times) // 10]


@dataclass(frozen=True)
class Batch:
    """Times of some plans, and the state of the device while they were taken."""

    times: tuple[PlanTimes, ...]
    state: dict[str, Any]


def measure(session: Any, library: Library, chosen: Sequence[int], columns: int, step: int, pace: Pace) -> Batch:
    """Time some plans of a library, by their numbers; the first is what the others are compared with.

    Parameters
    ----------
    session
        Of TVM's RPC.
    columns, step
        Of the matrix; of the entries of its table of columns.
    """
    name = f"{uuid4().hex}.so"  # a library that is loaded must not be written over
    session.upload(bytearray(library.image), name)
    module, cpu = session.load_module(name), session.cpu(0)
    session.remove(name)
    wanted = [library.arrays[i] for i in chosen]
    places = [_arguments(module, cpu, wanted, columns, step) for _ in range(PLACES)]
    names = [library.entries[i] for i in chosen]
    module["begin"]()
    try:
        hz = float(module["clock"]())
        timers = [
            _timer(module[f"seconds_{name}"], arrays, pace) for name, arrays in zip(names, places[0], strict=True)
        ]
        rounds: list[list[float]] = []
        while len(rounds) < pace.rounds or not _enough(rounds, pace):
            module["place"](len(rounds), _movable(wanted[0]))
            arguments = zip(timers, places[len(rounds) % PLACES], strict=True)
            rounds.append([seconds(*arrays) for seconds, arrays in arguments])
    finally:
        module["end"]()
    return Batch(_by_plan(rounds), state_of(session) | {"hz": round(hz)})


def _by_plan(rounds: Sequence[Sequence[float]]) -> tuple[PlanTimes, ...]:
    by_plan = [tuple(times) for times in zip(*rounds, strict=True)]
    return tuple(PlanTimes(times, by_plan[0]) for times in by_plan)


def _enough(rounds: Sequence[Sequence[float]], pace: Pace) -> bool:
    """Return whether every plan was timed in enough quiet rounds, or it was tried often enough."""
    quiet = min(len(times.quiet) for times in _by_plan(rounds))
    return quiet >= ENOUGH * pace.rounds or len(rounds) >= MOST * pace.rounds


def state_of(session: Any) -> dict[str, Any]:
    """Return what the server says of its device; nothing where it is not ours."""
    try:
        return dict(json.loads(session.get_function(STATE)()))
    except (AttributeError, ValueError, RuntimeError):
        return {}


def _timer(seconds: Callable[..., float], arrays: Sequence[Any], pace: Pace) -> Callable[..., float]:
    """Return the function that times one round of a plan on some arrays: as many calls as fill it."""
    once = min(seconds(*arrays, 1) for _ in range(2))
    calls = max(1, min(1000, round(pace.seconds / max(once, 1e-7))))

    def timed(*arrays: Any) -> float:
        # A round has arrays of its own, which else the first plan alone, the untuned one, would find cold.
        seconds(*arrays, 1)
        return seconds(*arrays, calls)

    return timed


def _movable(arrays: Sequence[Array]) -> int:
    """Return the bits of the arguments that lie in tensors with room to move: all but tables of columns."""
    return sum(1 << i for i, a in enumerate(arrays) if a.name != TABLE)


def _arguments(module: Any, cpu: Any, wanted: Sequence[Sequence[Array]], columns: int, step: int) -> list[list[Any]]:
    """Return the arguments of each plan, filled on the device: plans share all but their tables of columns."""
    sizes: dict[tuple[str, str], int] = {}
    for a in (a for arrays in wanted for a in arrays if a.name != TABLE):
        sizes[a.name, a.dtype] = max(a.size, sizes.get((a.name, a.dtype), 0))
    made = {(name, dtype): _numbers(module, cpu, size, dtype) for (name, dtype), size in sizes.items()}
    tables: dict[Array, Any] = {}
    for a in (a for arrays in wanted for a in arrays if a.name == TABLE and a not in tables):
        tables[a] = tvm.runtime.empty(a.shape, a.dtype, cpu)
        module["fill_columns"](tables[a], columns, step)
    return [[tables[a] if a.name == TABLE else made[a.name, a.dtype] for a in arrays] for arrays in wanted]


def _numbers(module: Any, cpu: Any, size: int, dtype: str) -> Any:
    """Return some numbers, and a page more of them."""
    tensor = tvm.runtime.empty((size + PAGE_BYTES // np.dtype(dtype).itemsize,), dtype, cpu)
    module["fill_numbers"](tensor)
    return tensor
