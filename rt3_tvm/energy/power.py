"""Power of a cluster at each operating point, modelled or measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rt3_tvm.device import Cluster, Device, frequency_name
from rt3_tvm.errors import Rt3Error, choices


@dataclass(frozen=True)
class PowerState:
    """A clock and what is drawn at it while cores are busy: Hz, W."""

    hz: float
    watts: float


@dataclass(frozen=True)
class Power:
    """What a cluster draws: busy at each clock, descending in Hz, and idle.

    ``source`` begins with "modelled" or "measured"; ``left_out``: operating points of the device that the source does not have.
    """

    states: tuple[PowerState, ...]
    idle_w: float
    source: str
    left_out: tuple[float, ...] = ()

    def at(self, frequencies: Sequence[float]) -> tuple[PowerState, ...]:
        """Return the states of frequencies whose power is known."""
        known = {round(state.hz): state for state in self.states}
        return tuple(known[round(hz)] for hz in frequencies)


def dynamic_power(hz: float, volts: float, uw_per_mhz_v2: float) -> float:
    """Return the W of a busy core at a frequency and a supply, by its coefficient in uW / (MHz V^2)."""
    return 1e-12 * uw_per_mhz_v2 * hz * volts * volts


def power_of(device: Device, source: str | None, cores: int = 1, static_w: float | None = None) -> Power:
    """Return what the first cluster draws: c f V^2, with ``source`` ``published`` as a publication had it, or measured in a file.

    Raises
    ------
    Rt3Error
        It is not known, or the cluster has fewer cores.
    """
    cluster = device.cluster
    if cores > cluster.cores:
        raise Rt3Error(f"`cores` {cores}: cluster '{cluster.name}' of {device.name} has {cluster.cores}")
    if source == "published":
        return published_power(device, cores)
    if source is not None:
        return measured_power(Path(source), cluster, cores, static_w)
    return modelled_power(cluster, device.name, cores, static_w)


def modelled_power(cluster: Cluster, where: str, cores: int = 1, static_w: float | None = None) -> Power:
    """Return c f V^2 of the busy cores, plus what the cluster draws whatever it does.

    Raises
    ------
    Rt3Error
        The device says no supplies, no coefficient, or no frequencies.
    """
    static = cluster.static_w if static_w is None else static_w
    lacks = [
        name
        for name, present in (
            ("operating points", cluster.opps),
            ("supplies", all(o.volts for o in cluster.opps)),
            ("power_uw_per_mhz_v2", cluster.power_uw_per_mhz_v2),
        )
        if not present
    ]
    if lacks:
        raise Rt3Error(
            f"{where}: cluster '{cluster.name}' has no {' and no '.join(lacks)}: give `power`, a file of measured watts, "
            "or a device that has them"
        )
    states = tuple(
        PowerState(o.hz, cores * dynamic_power(o.hz, o.volts, cluster.power_uw_per_mhz_v2) + static)
        for o in cluster.opps
    )
    said = f" + {static:g} W static" if static else ", no static power"
    source = f"modelled: {cluster.power_uw_per_mhz_v2:g} uW/(MHz V^2) x f V^2, busy cores: {cores}{said}"
    return Power(states, static, source)


def published_power(device: Device, cores: int = 1) -> Power:
    """Return c f V^2 with the operating points and the coefficient that a publication used for the device.

    Raises
    ------
    Rt3Error
        No publication is known.
    """
    published = device.published
    if published is None:
        raise Rt3Error(f"`power` published: nothing was published for '{device.name}': odroid-xu3 has RT3's levels")
    watts = (cores * dynamic_power(o.hz, o.volts, published.power_uw_per_mhz_v2) for o in published.opps)
    states = tuple(PowerState(o.hz, w) for o, w in zip(published.opps, watts, strict=True))
    return Power(
        states,
        0.0,
        f"modelled: as published, {published.power_uw_per_mhz_v2:g} uW/(MHz V^2) x f V^2, busy cores: {cores}",
    )


def measured_power(path: Path, cluster: Cluster, cores: int = 1, static_w: float | None = None) -> Power:
    """Return the watts of a file, for the operating points of the device that it has.

    The file is JSON: ``{"clusters": [{"name": ..., "points": [{"frequency_hz": ..., "measured": {"power_mw": ...}}]}]}``; the
    power is of one busy core, less what the device draws idle. Other keys are ignored.

    Raises
    ------
    Rt3Error
        Not such a file, or it does not have the cluster or any of its frequencies.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Rt3Error(f"`power` {path}: {error}") from error
    points = _points(data, cluster.name, path)
    static = cluster.static_w if static_w is None else static_w
    states = [PowerState(o.hz, cores * points[round(o.hz)] + static) for o in cluster.opps if round(o.hz) in points]
    if not states:
        raise Rt3Error(
            f"`power` {path}: none of its frequencies of '{cluster.name}' ({', '.join(map(frequency_name, points))}) is one of "
            f"the device's ({', '.join(frequency_name(o.hz) for o in cluster.opps) or 'none'})"
        )
    left_out = tuple(o.hz for o in cluster.opps if round(o.hz) not in points)
    said = f" + {static:g} W static, given" if static else ", idle power subtracted"
    return Power(tuple(states), static, f"measured: {path.name}, busy cores: {cores}{said}", left_out)


def _points(data: Any, cluster: str, path: Path) -> dict[int, float]:
    """Return the W by Hz of a cluster in a file of measured power."""
    try:
        clusters = {str(c["name"]): c["points"] for c in data["clusters"]}
    except (KeyError, TypeError) as error:
        raise Rt3Error(f"`power` {path}: expected clusters[].name and clusters[].points: {error!r}") from error
    if cluster not in clusters:
        raise Rt3Error(f"`power` {path}: no cluster '{cluster}': it has {choices(clusters)}")
    points = {}
    for i, point in enumerate(clusters[cluster]):
        try:
            hz, milliwatts = float(point["frequency_hz"]), float(point["measured"]["power_mw"])
        except (KeyError, TypeError, ValueError) as error:
            raise Rt3Error(
                f"`power` {path}: {cluster}.points[{i}]: expected frequency_hz and measured.power_mw: {error!r}"
            ) from error
        if not (1e6 <= hz <= 1e11 and 0.0 < milliwatts <= 1e5):
            raise Rt3Error(f"`power` {path}: {cluster}.points[{i}]: {hz:g} Hz, {milliwatts:g} mW cannot be")
        points[round(hz)] = 1e-3 * milliwatts
    return points
