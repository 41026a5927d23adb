"""Levels of a bundle on a device: in turns with the dense model, at every frequency that it lets us set.

What is found is the table that a search, the level table and the simulation take: s of every matrix, by the steps of a run.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from rt3_tvm import device as devices
from rt3_tvm import model as models
from rt3_tvm.bench.model import ModelResult
from rt3_tvm.codegen import CompileOptions, compile_checkpoint
from rt3_tvm.device import frequency_name
from rt3_tvm.energy.latency import DENSE_GROUP, TableLatency, TableRow
from rt3_tvm.energy.loads import SMALLEST
from rt3_tvm.errors import Rt3Error
from rt3_tvm.prune import PruneOptions, prune_one_shot
from rt3_tvm.runtime.check import read_metadata
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.timing import Timing
from rt3_tvm.tune.clocks import Clocks
from rt3_tvm.tune.options import RemoteOptions
from rt3_tvm.tune.remote import Prepared, RemoteBundle
from rt3_tvm.tune.session import Remote

ROUNDS, ROUND_SECONDS = 15, 0.02
MOST_CALLS = 1000
DENSE = "dense"
"""Name of our own dense model, in what is shown."""
Say = Callable[[str], None]
Key = tuple[int, int, int, float, str]
"""Of a row of a table: rows, columns, group, density, element type."""


@dataclass(frozen=True)
class Runner:
    """A level of a bundle on a device, with inputs."""

    name: str
    bundle: RemoteBundle
    level: int
    calls: Prepared

    @property
    def density(self) -> float:
        """Kept part of its pruned matrices."""
        return self.bundle.densities[self.level]

    def seconds(self, number: int) -> float:
        """Return the s of one of so many runs, after one that is not timed."""
        self.bundle.set_level(self.level)
        self.calls.run()
        return self.calls.seconds(number)


@dataclass(frozen=True)
class Times:
    """Of a level: ms of a run, and the median s of each of its steps."""

    whole: Timing
    steps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """What was timed, by Hz and by level, and the table of it; ``notes`` say what was not done, and why."""

    batch: int
    table: TableLatency
    times: Mapping[float, Mapping[str, Timing]]
    densities: Mapping[str, float]
    notes: tuple[str, ...]


def sweep(path: Path, device: Remote, options: RemoteOptions, threads: int = 1, say: Say = lambda _: None) -> Sweep:
    """Time every level of a bundle, and the dense model, on a device, at its largest batch and length.

    Parameters
    ----------
    threads
        Of a run.

    Raises
    ------
    Rt3Error
        The bundle is not for the device, or its dense model cannot be compiled here.
    JobError
        The device has vanished.
    """
    with _runners(path, device, options, None, threads, say) as runners:
        clocks = Clocks.of(device, options.cross_compiler, runners[0].bundle.metadata["target"])
        found: dict[float, list[Times]] = {}
        for hz in clocks.each():
            say(f"{len(runners)} levels at {frequency_name(hz)}")
            found[hz] = _in_turns(runners, steps=True)
    facts = runners[0].bundle.metadata
    table = TableLatency(
        str(device.board().get("core") or facts["target"].get("mcpu", "")),
        runners[0].bundle.max_length,
        threads,
        tuple(table_rows(runners, found)),
    )
    times = {hz: {r.name: t.whole for r, t in zip(runners, all_, strict=True)} for hz, all_ in found.items()}
    return Sweep(int(facts["batch"]), table, times, {r.name: r.density for r in runners}, tuple(clocks.notes))


def bench_remote(
    path: Path, device: Remote, options: RemoteOptions, length: int | None, threads: int, say: Say = lambda _: None
) -> ModelResult:
    """Time every level of a bundle on a device in turns with the dense model of our own; see ``rt3 bench model``."""
    with _runners(path, device, options, length, threads, say) as runners:
        bundle = runners[0].bundle
        times = {r.name: t.whole for r, t in zip(runners, _in_turns(runners, steps=False), strict=True)}
    levels = [r for r in runners if r.bundle is bundle]
    return ModelResult(
        int(bundle.metadata["batch"]),
        length or bundle.max_length,
        threads,
        tuple(times[r.name] for r in levels),
        tuple(r.density for r in levels),
        {DENSE: times[next(r.name for r in runners if r.density == 1.0)]},
    )


@contextmanager
def _runners(
    path: Path, device: Remote, options: RemoteOptions, length: int | None, threads: int, say: Say
) -> Iterator[list[Runner]]:
    """Yield the levels of a bundle on a device, and the dense model where no level is dense."""
    say(f"upload {path}")
    bundles = {"level": RemoteBundle(device, path)}
    first = bundles["level"]
    length = length or first.max_length
    if not 1 <= length <= first.max_length:
        raise Rt3Error(f"`length` {length}: this bundle takes 1 to {first.max_length}")
    if 1.0 not in first.densities:
        with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
            say("compile the dense model, to measure beside")
            twin = Path(folder) / "dense.so"
            compile_dense(path, twin, options)
            bundles[DENSE] = RemoteBundle(device, twin)
    inputs = models.random_inputs(
        models.inputs_of(models.build(first.metadata["model"])), int(first.metadata["batch"]), length
    )
    yield [runner for what, b in bundles.items() for runner in _levels_of(what, b, inputs, threads)]
    for bundle in bundles.values():
        bundle.close()


def _levels_of(what: str, bundle: RemoteBundle, inputs: dict[str, np.ndarray], threads: int) -> Iterator[Runner]:
    bundle.set_threads(threads)
    calls = bundle.prepared(**inputs)
    for level in range(len(bundle.densities)):
        yield Runner(what if what == DENSE else f"{what} {level}", bundle, level, calls)


def compile_dense(path: Path, output: Path, options: RemoteOptions) -> None:
    """Compile the dense model of a bundle, with random weights, which take as long, as the bundle was compiled.

    Raises
    ------
    Rt3Error
        The bundle's device is not known here, or another one of the same name.
    """
    facts = read_metadata(path)
    asked = CompileOptions(
        device=facts["device"],
        cluster=facts["cluster"],
        lengths=tuple(facts["lengths"]),
        dtype=(facts["levels"][0].get("dtype", REAL.dtype),),
        batch=facts["batch"],
        threads=facts["threads"],
        frequencies=(1e9,),
        cross_compiler=options.cross_compiler,
        verify=False,
    )
    try:
        target = devices.load(asked.device).with_cluster(facts["cluster"]).cluster.target_dict()
    except Rt3Error as error:
        raise Rt3Error(f"{error.text}; {_without(path)}") from error
    if target != facts["target"]:
        raise Rt3Error(f"the device '{asked.device}' of '{path}' is another one here; {_without(path)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # so that the cache has it the next time
        model = models.build(facts["model"])
    compile_checkpoint(prune_one_shot(model, PruneOptions((0.0,))), output, asked)


def _without(path: Path) -> str:
    return f"'{path}' can be measured beside a dense level of its own (sparsity 0)"


def _in_turns(runners: Sequence[Runner], steps: bool) -> list[Times]:
    """Return the times of levels that take turns, round by round."""
    number = [max(1, min(MOST_CALLS, round(ROUND_SECONDS / max(1e-7, r.seconds(1))))) for r in runners]
    whole: list[list[float]] = [[] for _ in runners]
    parts: list[list[list[float]]] = [[] for _ in runners]
    for _ in range(ROUNDS):
        for i, runner in enumerate(runners):
            whole[i].append(1e3 * runner.seconds(number[i]))
            if steps:
                parts[i].append(runner.calls.profile())
    return [
        Times(Timing.of(ms), tuple(map(median, zip(*seconds, strict=True))))
        for ms, seconds in zip(whole, parts, strict=True)
    ]


def table_rows(runners: Sequence[Runner], found: Mapping[float, Sequence[Times]]) -> Iterator[TableRow]:
    """Yield the rows of the table of some times by Hz: what is no matrix first, then each matrix by its key."""
    by_key: dict[Key, dict[float, float]] = {}
    for hz, times in found.items():
        matrices: dict[Key, list[float]] = {}
        rest = []
        for runner, one in zip(runners, times, strict=True):
            mine = matrix_seconds(runner.bundle.metadata, runner.level, runner.bundle.max_length, one.steps)
            rest.append(sum(one.steps) - sum(s for _, s in mine))
            for key, seconds in mine:
                matrices.setdefault(key, []).append(seconds)
        by_key.setdefault((0, 0, DENSE_GROUP, 1.0, REAL.dtype), {})[hz] = median(rest)
        for key, all_ in matrices.items():
            by_key.setdefault(key, {})[hz] = fmean(all_)
    for (rows, cols, group, density, dtype), seconds_at in by_key.items():
        for hz, (compute, memory) in parts_of(seconds_at).items():
            yield TableRow(rows, cols, group, density, hz, compute, memory, dtype)


def matrix_seconds(
    facts: Mapping[str, Any], level: int, length: int, steps: Sequence[float]
) -> list[tuple[Key, float]]:
    """Return the row of each matrix of a level and its s in one run, of the s of the steps; heads count with the rest."""
    variant = next(v for v in facts["variants"] if v["level"] == level and v["length"] == length)
    seconds: defaultdict[str, float] = defaultdict(float)
    for (_kernel, matrix, _flops, _bytes), s in zip(variant["steps"], steps, strict=True):
        if matrix and min(facts["matrices"][matrix]["shape"]) >= SMALLEST:
            seconds[matrix] += s  # a matrix may be multiplied by more than once
    found: list[tuple[Key, float]] = []
    for matrix, s in seconds.items():
        (rows, cols), kept = facts["matrices"][matrix]["shape"], facts["matrices"][matrix]["levels"][level]
        group = kept["group"] if kept["density"] < 1.0 else DENSE_GROUP
        found.append(((rows, cols, group, kept["density"], kept.get("dtype", REAL.dtype)), s))
    return found


def parts_of(seconds_at: Mapping[float, float]) -> dict[float, tuple[float, float]]:
    """Return, by Hz, what of some s follows the clock and what does not: of one frequency all of it is taken to follow."""
    memory = 0.0
    if len(seconds_at) > 1:
        _slope, constant = np.polyfit([1 / hz for hz in seconds_at], list(seconds_at.values()), 1)
        memory = float(np.clip(constant, 0.0, min(seconds_at.values())))
    return {hz: (s - memory, memory) for hz, s in seconds_at.items()}
