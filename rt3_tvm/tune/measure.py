"""Times of the plans of a library on a device, taken in turns with the plan that would be taken untuned."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

import tvm

from rt3_tvm.tune.build import Array, Library

STATE = "rt3.device_state"
"""Function of our own server: JSON of the cluster, the frequency that is held, the temperature."""

PID = "rt3.device_pid"
"""Function of our own server: number of the process that serves the session."""


@dataclass(frozen=True)
class Pace:
    """How a batch is timed: rounds, and seconds of each plan in a round."""

    rounds: int
    seconds: float


TRIALS, FINALS = Pace(7, 0.004), Pace(25, 0.008)
"""Of plans that are tried, and of those that are measured once more to decide."""


@dataclass(frozen=True)
class PlanTimes:
    """Seconds of a call of one plan, round by round, and of the first plan of the batch in the same rounds."""

    seconds: tuple[float, ...]
    against: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return median(self.seconds)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Quartiles of its time over the first one's in the same round."""
        ratios = [mine / other for mine, other in zip(self.seconds, self.against, strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


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
    arguments = _arguments(module, cpu, [library.arrays[i] for i in chosen], columns, step)
    names = [library.entries[i] for i in chosen]
    module["begin"]()
    try:
        hz = float(module["clock"]())
        evaluators = [
            _evaluator(module, name, cpu, arrays, pace) for name, arrays in zip(names, arguments, strict=True)
        ]
        rounds = [
            [evaluate(*arrays).results[0] for evaluate, arrays in zip(evaluators, arguments, strict=True)]
            for _ in range(pace.rounds)
        ]
    finally:
        module["end"]()
    by_plan = [tuple(times) for times in zip(*rounds, strict=True)]
    return Batch(tuple(PlanTimes(times, by_plan[0]) for times in by_plan), state_of(session) | {"hz": round(hz)})


def state_of(session: Any) -> dict[str, Any]:
    """Return what the server says of its device; nothing where it is not ours."""
    try:
        return dict(json.loads(session.get_function(STATE)()))
    except (AttributeError, ValueError, RuntimeError):
        return {}


def _evaluator(module: Any, name: str, cpu: Any, arrays: Sequence[Any], pace: Pace) -> Any:
    """Return the function that times one round of a plan: as many calls as fill it."""
    once = min(module.time_evaluator(name, cpu, number=1, repeat=2)(*arrays).results)
    number = max(1, min(1000, round(pace.seconds / max(once, 1e-7))))
    return module.time_evaluator(name, cpu, number=number, repeat=1)


def _arguments(module: Any, cpu: Any, wanted: Sequence[Sequence[Array]], columns: int, step: int) -> list[list[Any]]:
    """Return the arguments of each plan, filled on the device: plans share all but their tables of columns."""
    largest: dict[tuple[str, str], Array] = {}
    for arrays in wanted:
        for a in arrays:
            other = largest.get((a.name, a.dtype))
            if other is None or _size(a) > _size(other):
                largest[a.name, a.dtype] = a
    made = {(a.name, a.dtype): _numbers(module, cpu, a) for a in largest.values() if a.name != "offsets"}
    tables: dict[Array, Any] = {}
    for arrays in wanted:
        for a in arrays:
            if a.name == "offsets" and a not in tables:
                tables[a] = tvm.runtime.empty(a.shape, a.dtype, cpu)
                module["fill_columns"](tables[a], columns, step)
    return [[tables[a] if a.name == "offsets" else made[a.name, a.dtype] for a in arrays] for arrays in wanted]


def _size(array: Array) -> int:
    size = 1
    for extent in array.shape:
        size *= extent
    return size


def _numbers(module: Any, cpu: Any, array: Array) -> Any:
    tensor = tvm.runtime.empty(array.shape, array.dtype, cpu)
    module["fill_numbers"](tensor)
    return tensor
