"""A device as the TOML that ``rt3_tvm.device.load`` reads."""

import json
from collections.abc import Iterator
from typing import Any

from rt3_tvm.device.types import Cluster, Device, OperatingPoint


def to_toml(device: Device, missing: tuple[str, ...] = ()) -> str:
    """Return a device as TOML, with a comment for each thing that is missing."""
    lines = [f"# not known: {what}" for what in missing]
    lines.append(f"title = {_value(device.title)}")
    lines.append(f"source = {_value(device.source)}")
    if device.notes:
        lines.append(f"notes = {_value(device.notes)}")
    if device.published is not None:
        lines += ["", "[published]", f"power_uw_per_mhz_v2 = {_value(device.published.power_uw_per_mhz_v2)}"]
        lines += _opps(device.published.opps)
    for cluster in device.clusters:
        lines += ["", "[[cluster]]", *_cluster(cluster)]
    return "\n".join(lines) + "\n"


def _cluster(cluster: Cluster) -> Iterator[str]:
    for key in ("name", "core", "isa", "cores"):
        if value := getattr(cluster, key):
            yield f"{key} = {_value(value)}"
    entries = ", ".join(f"{key} = {_value(value)}" for key, value in cluster.target)
    yield f"target = {{ {entries} }}"
    optional = ("l1d_bytes", "l2_bytes", "l3_bytes", "capacity", "power_uw_per_mhz_v2", "static_w")
    for key in ("lanes", "registers", *optional):
        if value := getattr(cluster, key):
            yield f"{key} = {_value(value)}"
    yield from _opps(cluster.opps)


def _opps(opps: tuple[OperatingPoint, ...]) -> Iterator[str]:
    yield "# [Hz, V]"
    yield "opps = ["
    for opp in opps:
        yield f"    [{opp.hz:.0f}, {opp.volts:g}]," if opp.volts else f"    [{opp.hz:.0f}],"
    yield "]"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)
