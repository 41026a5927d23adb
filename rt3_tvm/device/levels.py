"""Which Hz each level gets: the one rule that compiling, searching and simulating ask.

A level's frequency is the lowest at which the dispatcher takes it. It is what the user gives; else, where a deadline and a model
of latency decide, the lowest operating point in time; else what the checkpoint names; else one of the device's, spread from the
top to the lowest. V and W follow from it: :meth:`Cluster.operating_point`, :class:`rt3_tvm.energy.power.Power`.
"""

from collections.abc import Callable, Sequence

from rt3_tvm import rt3
from rt3_tvm.device.frequencies import check_frequencies, frequency_name
from rt3_tvm.device.types import Device
from rt3_tvm.errors import Rt3Error

HOST_LABELS_HZ = rt3.FREQUENCIES_HZ
"""What levels are called on a machine that shows no operating points, such as a host without cpufreq."""


def level_frequencies(
    device: Device,
    levels: int,
    given: Sequence[float] | None = None,
    named: Sequence[float] = (),
    powered: Sequence[float] | None = None,
    labels: bool = False,
) -> tuple[float, ...]:
    """Return the Hz of each level, descending, every one an operating point where the device has any.

    Parameters
    ----------
    given, named
        What the user asks for, and what the checkpoint names (0: nothing); the first that there is counts.
    powered
        The Hz whose power is known, descending, where that matters: then only these will do. None: it does not.
    labels
        Whether those given may be any: a bundle only compares them with the clock.

    Raises
    ------
    Rt3Error
        Not one for each level, not descending, the device lacks one, or its power is not known.
    """
    if given is not None:
        check_frequencies(given, levels)
        return tuple(given) if labels else tuple(_operating(device, hz, "`frequencies`", powered) for hz in given)
    if named and all(named):
        other = f"is for another device than '{device.name}': give `frequencies`"
        return tuple(_operating(device, hz, f"level {i} {other}", powered) for i, hz in enumerate(named))
    if powered is None:
        powered = [opp.hz for opp in device.cluster.opps] or HOST_LABELS_HZ
    return _spread(powered, levels, device.name)


def _operating(device: Device, hz: float, where: str, powered: Sequence[float] | None) -> float:
    """Return a frequency as the device has it."""
    if powered is None:
        return device.cluster.operating_point(hz, where).hz if device.cluster.opps else hz
    for known in powered:
        if round(known) == round(hz):
            return known
    if device.cluster.opps:
        device.cluster.operating_point(hz, where)  # says which there are
    raise Rt3Error(f"{where}: no power is known at {frequency_name(hz)}: {', '.join(map(frequency_name, powered))}")


def _spread(hz: Sequence[float], levels: int, name: str) -> tuple[float, ...]:
    """Return the first of descending frequencies, the last, and evenly spaced ones between; ``name`` of the device."""
    if levels == 1:
        return (hz[0],)
    if levels > len(hz):
        raise Rt3Error(f"{levels} levels but device '{name}' has {len(hz)} operating points: give `frequencies`")
    return tuple(hz[round(i * (len(hz) - 1) / (levels - 1))] for i in range(levels))


def lowest_in_time(
    levels: Sequence[Callable[[float], float]], opps: Sequence[float], deadline_s: float
) -> tuple[float, ...]:
    """Return for each level the lowest operating point at which it is within a deadline.

    Parameters
    ----------
    levels
        For each level, densest first, its s at a frequency.
    opps
        Hz to choose from.

    Raises
    ------
    Rt3Error
        A level is late even at the top, or no lower than the one before it, so that it would never run.
    """
    found: list[float] = []
    for i, seconds in enumerate(levels):
        in_time = [hz for hz in opps if seconds(hz) <= deadline_s]
        if not in_time:
            best = 1e3 * seconds(max(opps))
            raise Rt3Error(
                f"deadline {1e3 * deadline_s:g} ms: level {i} takes {best:.4g} ms even at {frequency_name(max(opps))}: "
                "prune more, or allow more time"
            )
        if found and min(in_time) >= found[-1]:
            raise Rt3Error(
                f"deadline {1e3 * deadline_s:g} ms: levels {i - 1} and {i} both need {frequency_name(min(in_time))}: level {i} "
                "would never run; prune it more, or allow less time"
            )
        found.append(min(in_time))
    return tuple(found)
