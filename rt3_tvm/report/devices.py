"""``rt3 devices``: what is known of a device."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from rt3_tvm.device import Device, frequency_name
from rt3_tvm.device.toml import tag_of
from rt3_tvm.energy.power import dynamic_power


def device_facts(device: Device) -> dict[str, Any]:
    """Return a device as JSON: OPPs as [Hz, V], V null where unknown."""
    facts = asdict(device)
    for cluster, row in zip(device.clusters, facts["clusters"], strict=True):
        row |= {"target": cluster.target_dict(), "tag": tag_of(device.name, cluster.core)}
        row["opps"] = [[o.hz, o.volts or None] for o in cluster.opps]
    if device.published is not None:
        facts["published"]["opps"] = [[o.hz, o.volts] for o in device.published.opps]
    return facts


def devices_table(devices: list[Device]) -> Table:
    """Return one line per device, and one for this machine, which takes TVM and its seconds to be named."""
    table = Table(title="devices (rt3 devices show NAME says more)")
    for head in ("name", "what", "clusters", "GHz", "power"):
        table.add_column(head, no_wrap=head == "name")
    for device in devices:
        clusters = device.clusters
        table.add_row(
            device.name,
            device.title,
            ", ".join(f"{c.cores}x {c.core}" for c in clusters),
            ", ".join(_range(c.opps) for c in clusters),
            "modelled" if all(_has_power(c) for c in clusters) else "with --power",
        )
    table.add_row("host", "the machine this runs on", "rt3 devices show host", "", "with --power")
    return table


def _has_power(cluster: Any) -> bool:
    return bool(cluster.power_uw_per_mhz_v2 and cluster.opps and all(o.volts for o in cluster.opps))


def _range(opps: Any) -> str:
    return f"{opps[-1].hz / 1e9:.3g}-{opps[0].hz / 1e9:.3g} ({len(opps)})" if opps else "unknown"


def device_parts(device: Device) -> list[Any]:
    """Return everything that is known of a device, for a terminal."""
    parts: list[Any] = [f"{device.name}: {device.title}"]
    parts += [text for text in (device.notes, f"source: {device.source}") if text]
    for cluster in device.clusters:
        known = {
            "isa": cluster.isa,
            "L1d": _bytes(cluster.l1d_bytes),
            "L2": _bytes(cluster.l2_bytes),
            "L3": _bytes(cluster.l3_bytes),
            "capacity": cluster.capacity,
            "uW/(MHz V^2) a core": f"{cluster.power_uw_per_mhz_v2:g}" if cluster.power_uw_per_mhz_v2 else "",
        }
        facts = ", ".join(f"{key} {value or 'unknown'}" for key, value in known.items())
        tag = tag_of(device.name, cluster.core)
        parts.append(f"\ncluster {cluster.name}: {cluster.cores}x {cluster.core}; {facts}; TVM target {tag}")
        if cluster.opps:
            parts.append(_opps_table(cluster))
    if device.published is not None:
        published = device.published
        rows = ", ".join(f"{frequency_name(o.hz)} at {o.volts:g} V" for o in published.opps)
        parts.append(f"\npublished levels: {rows}; {published.power_uw_per_mhz_v2:g} uW/(MHz V^2)")
    return parts


def _opps_table(cluster: Any) -> Table:
    table = Table()
    for head in ("frequency", "V", "mW of a busy core (modelled)"):
        table.add_column(head, justify="right")
    for opp in cluster.opps:
        known = opp.volts and cluster.power_uw_per_mhz_v2
        watts = dynamic_power(opp.hz, opp.volts, cluster.power_uw_per_mhz_v2)
        table.add_row(
            frequency_name(opp.hz), f"{opp.volts:g}" if opp.volts else "", f"{1e3 * watts:.1f}" if known else ""
        )
    return table


def _bytes(size: int) -> str:
    return f"{size >> 10} KiB" if size else ""
