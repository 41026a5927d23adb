"""``rt3 simulate``: what one charge is good for with a dense model, a backbone, and RT3's levels."""

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

from rt3_tvm import device as devices
from rt3_tvm import rt3
from rt3_tvm.device import Device, frequency_name, level_frequencies
from rt3_tvm.energy.auto import Auto
from rt3_tvm.energy.battery import BATTERY
from rt3_tvm.energy.governors import Governor, governor, read_trace
from rt3_tvm.energy.latency import LatencyModel, TableLatency, latency_model, source_for
from rt3_tvm.energy.loads import LevelFacts, ModelFacts, read_facts
from rt3_tvm.energy.power import Power, power_of
from rt3_tvm.energy.simulation import Outcome, Workload, spend_charge
from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import (
    FREQUENCIES,
    MILLISECONDS,
    NUMBER,
    PATH,
    SHARES,
    TEXT,
    WHOLE,
    documented,
    numbers,
    option,
    switch,
)


@documented
@dataclass(frozen=True)
class SimulateOptions:
    """What is simulated."""

    device: str = option(MISSING, TEXT, "where it runs, see rt3 devices")
    cluster: str | None = option(None, TEXT, "cluster of the device; default its first")
    latency: str = option("rt3", TEXT.called("rt3|FILE"), "RT3's analytic model, or what rt3 bench latency measured")
    tokens: int | None = option(
        None, WHOLE.called("T"), "tokens of an inference; default the bundle's longest, else 1", name="seq-len"
    )
    power: str | None = option(
        None,
        TEXT.called("FILE|published"),
        "measured watts, or what a publication used; default c f V^2 with the device's figures",
    )
    static_w: float | None = option(
        None, NUMBER.called("W"), "what the cluster draws besides; default the device's", name="static-power"
    )
    cores: int = option(1, WHOLE, "cores busy in an inference")
    battery_j: float = option(rt3.BATTERY_J, BATTERY, "a charge: 37800J, 10.5Wh or 3000mAhx3.85V", name="battery")
    governor: str = option(
        "rt3",
        TEXT,
        "performance, powersave, ondemand, conservative, schedutil, or rt3: each frequency spends its share",
        either="policy",
    )
    trace: Path | None = option(None, PATH, "frequency over time: lines as 3600,1.4GHz", either="policy")
    shares: tuple[float, ...] = option(rt3.SHARES, SHARES, "% of the charge that each frequency spends, for rt3")
    rate: float = option(0.0, NUMBER.called("R"), "inferences per second; 0: back to back")
    deadline_s: float = option(0.0, MILLISECONDS, "deadline of an inference; 0: none", name="deadline")
    hours: float = option(math.inf, NUMBER.called("H"), "end here although charge is left")
    frequencies: tuple[float, ...] | None = option(
        None, FREQUENCIES, "of the levels, descending; default those the model names, else the device's", name="freqs"
    )
    accuracy: tuple[float, ...] | None = option(
        None, numbers("accuracies", "A,A,.."), "of the dense model, then of each level"
    )
    auto: bool = switch(False, "one row more: RT3's levels as the bundle's `auto` takes them, by its own C code")
    dwell_s: float = option(0.0, MILLISECONDS, "dwell time of `auto`; 0: its default", name="dwell")

    def __post_init__(self) -> None:
        for name, value, least in (
            ("`rate`", self.rate, 0.0),
            ("`deadline_s`", self.deadline_s, 0.0),
            ("`static_w`", self.static_w or 0.0, 0.0),
            ("`dwell_s`", self.dwell_s, 0.0),
        ):
            if not (least <= value < 1e6):
                raise Rt3Error(f"{name} {value:g} must be at least {least:g}")
        if not self.hours > 0.0:
            raise Rt3Error(f"`hours` {self.hours:g} must be above 0")
        if self.cores < 1 or (self.tokens is not None and self.tokens < 1):
            raise Rt3Error("`cores` and `tokens` must be at least 1")
        if not 0.0 < self.battery_j <= 1e9:
            raise Rt3Error(f"`battery_j` {self.battery_j:g} J: give one above 0")


@dataclass(frozen=True)
class Configuration:
    """One way to spend a charge, and what came of it.

    ``accuracy``: mean over the inferences that ended, None where that of a level that ran is unknown.
    """

    name: str
    latency_ms: tuple[float, ...]
    density: tuple[float, ...]
    outcome: Outcome
    accuracy: float | None
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """Return the row for ```json```."""
        o = self.outcome
        return {
            "name": self.name,
            "latency_ms": list(self.latency_ms),
            "density": list(self.density),
            "runs": o.runs,
            "ratio": self.ratio,
            "hours": o.seconds / 3600,
            "late": o.late,
            "skipped": o.skipped,
            "switches": o.switches,
            "missed": o.missed,
            "joules": o.joules,
            "served_by_level": o.served,
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True)
class Comparison:
    """The configurations, and where every figure comes from.

    ``frequencies``: Hz of the levels, at which ``latency_ms`` of the configurations is; ``opps``: Hz by operating point.
    """

    model: ModelFacts
    device: Device
    options: SimulateOptions
    frequencies: tuple[float, ...]
    opps: tuple[float, ...]
    rows: tuple[Configuration, ...]
    sources: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it for ```json```."""
        return {
            "model": self.model.path,
            "device": self.device.name,
            "cluster": self.device.cluster.name,
            "battery_j": self.options.battery_j,
            "deadline_ms": 1e3 * self.options.deadline_s,
            "frequencies_hz": list(self.frequencies),
            "rows": [row.to_json() for row in self.rows],
            "sources": self.sources,
        }


def compare(path: Path, options: SimulateOptions) -> Comparison:
    """Return what one charge is good for: dense at the top clock, dense, backbone and RT3's levels with DVFS.

    RT3's levels are those of the level table at once; where it is asked for, once more as ``auto`` takes them.

    Raises
    ------
    Rt3Error
        The device lacks a frequency that the levels name, power or latency is not known, an option is not sane, or there is
        no C compiler for ``auto``.
    """
    facts = _with_accuracy(read_facts(path), options.accuracy)
    device = devices.load(options.device)
    if options.cluster is not None:
        device = device.with_cluster(options.cluster)
    power = power_of(device, options.power, options.cores, options.static_w)
    opps = tuple(state.hz for state in power.states)
    named = tuple(level.frequency_hz for level in facts.levels)
    frequencies = level_frequencies(device, len(facts.levels), options.frequencies, named, opps)
    model = _latency(facts, options)
    period = 1.0 / options.rate if options.rate else 0.0
    if options.trace is not None:
        policy: Governor = read_trace(options.trace, device.cluster, opps)
    else:
        policy = governor(options.governor, opps, frequencies, options.shares, period)
    top = governor("performance", opps, frequencies)
    chosen = any(named) or options.frequencies is not None
    backbone, backbone_name = facts.backbone, "backbone"
    if backbone is None:
        backbone, backbone_name = facts.levels[0], "level 0 alone (no backbone)"
    elif backbone.accuracy is None and math.isclose(backbone.density, facts.levels[0].density):
        backbone = replace(backbone, accuracy=facts.levels[0].accuracy)
    rows: list[Configuration] = []

    def add(
        name: str, levels: Sequence[LevelFacts], policy: Governor, by_deadline: bool = False, auto: bool = False
    ) -> None:
        workload = _workload(model, power, levels, frequencies, options, by_deadline)
        dispatcher = _auto(workload, opps, options) if auto else None
        outcome = spend_charge(options.battery_j, workload, policy, 3600.0 * options.hours, dispatcher)
        at = [opps.index(f) for f in frequencies] if policy is not top else [0]
        ms = tuple(1e3 * workload.seconds[i][workload.level_of[i]] for i in at)
        density = tuple(levels[workload.level_of[i]].density for i in at)
        first = rows[0].outcome.runs if rows else outcome.runs
        ratio = outcome.runs / first if first else math.nan
        rows.append(Configuration(name, ms, density, outcome, _mean_accuracy(levels, outcome), ratio))

    add(f"dense, {frequency_name(opps[0])} only", [facts.dense], top)
    add("dense + DVFS", [facts.dense], policy)
    add(f"{backbone_name} + DVFS", [backbone], policy)
    by_deadline = options.deadline_s > 0 and not chosen
    add("RT3's levels + DVFS", facts.levels, policy, by_deadline)
    if options.auto:
        add("RT3's levels + DVFS, auto", facts.levels, policy, by_deadline, auto=True)
    return Comparison(
        facts, device, options, frequencies, opps, tuple(rows), _sources(facts, model, power, device, options)
    )


def _with_accuracy(facts: ModelFacts, accuracy: tuple[float, ...] | None) -> ModelFacts:
    """Return the facts with the accuracies that were given."""
    if accuracy is None:
        return facts
    if len(accuracy) != 1 + len(facts.levels):
        raise Rt3Error(
            f"`accuracy` names {len(accuracy)}: give the dense model's, then one for each of {len(facts.levels)} levels"
        )
    levels = tuple(replace(level, accuracy=a) for level, a in zip(facts.levels, accuracy[1:], strict=True))
    return replace(facts, levels=levels, dense_accuracy=accuracy[0], accuracy_source="given (--accuracy)")


def _latency(facts: ModelFacts, options: SimulateOptions) -> LatencyModel:
    model = latency_model(options.latency, options.tokens or facts.tokens or 1)
    if isinstance(model, TableLatency) and options.tokens not in (None, model.tokens):
        raise Rt3Error(f"`tokens` {options.tokens}: {options.latency} was measured with {model.tokens} tokens")
    return model


def _workload(
    model: LatencyModel,
    power: Power,
    levels: Sequence[LevelFacts],
    frequencies: tuple[float, ...],
    options: SimulateOptions,
    by_deadline: bool,
) -> Workload:
    """Return what runs at each operating point: the level as the dispatcher takes it, or the densest that is in time."""
    opps = [state.hz for state in power.states]
    seconds = tuple(tuple(model.seconds(hz, level.loads) for level in levels) for hz in opps)
    level_of = []
    for hz, took in zip(opps, seconds, strict=True):
        if by_deadline:
            in_time = (i for i, s in enumerate(took) if s <= options.deadline_s)
        else:
            in_time = (i for i, f in enumerate(frequencies[: len(levels)]) if hz >= f)
        level_of.append(next(in_time, len(levels) - 1))
    period = 1.0 / options.rate if options.rate else 0.0
    watts = tuple(state.watts for state in power.states)
    return Workload(watts, power.idle_w, tuple(level_of), seconds, period, options.deadline_s)


def _auto(workload: Workload, opps: Sequence[float], options: SimulateOptions) -> Auto:
    """Return ``auto`` with a level table that says what the workload's does."""
    levels = range(len(workload.seconds[0]))
    first = (
        min((hz for hz, took in zip(opps, workload.level_of, strict=True) if took <= i), default=math.inf)
        for i in levels
    )
    return Auto(opps, [(hz, options.deadline_s) for hz in first], options.dwell_s)


def _mean_accuracy(levels: Sequence[LevelFacts], outcome: Outcome) -> float | None:
    served = [(n, level.accuracy) for n, level in zip(outcome.served, levels, strict=False) if n]
    if not served or any(a is None for _, a in served):
        return None
    return sum(n * a for n, a in served if a is not None) / sum(n for n, _ in served)


def _sources(
    facts: ModelFacts, model: LatencyModel, power: Power, device: Device, options: SimulateOptions
) -> dict[str, str]:
    """Return for each kind of figure whether it is measured, modelled or given."""
    policy = f"trace {options.trace}" if options.trace else f"governor {options.governor}"
    load = f"{options.rate:g} inferences/s" if options.rate else "back to back"
    dwell = f"dwell time {1e3 * options.dwell_s:g} ms" if options.dwell_s else "its default dwell time"
    auto = {"auto": f"the bundle's own C code, {dwell}, in simulated time"} if options.auto else {}
    left_out = f"; no figure for {', '.join(map(frequency_name, power.left_out))}: left out" if power.left_out else ""
    return {
        "latency": source_for(model, device.cluster.core),
        "power": power.source + left_out,
        "battery": f"given: {options.battery_j:g} J; {policy}, {load}",
        "runs, hours, missed": "modelled: simulated from the latency and the power above",
        **auto,
        "accuracy": facts.accuracy_source,
    }
