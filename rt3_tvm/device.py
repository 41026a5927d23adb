"""Devices: clusters of cores with their operating points, caches and TVM target, read from TOML."""

import os
import platform
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from rt3_tvm.errors import Rt3Error, choices

HOST_LABELS_HZ = (1.4e9, 1.0e9, 0.8e9)
"""RT3's three frequencies, used as labels where the host shows no cpufreq."""

VECTOR_FEATURES = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl")
"""x86 features that change the code LLVM writes; a hypervisor may hide what the CPU model has."""

_UNITS = {"ghz": 1e9, "mhz": 1e6, "khz": 1e3, "hz": 1.0, "": 1.0}


@dataclass(frozen=True)
class OperatingPoint:
    """One OPP: frequency in Hz, supply in V (0 where unknown)."""

    hz: float
    volts: float


@dataclass(frozen=True)
class Cluster:
    """Equal cores: TVM target, float32 lanes and registers of the vector unit, cache sizes in bytes, OPPs descending."""

    name: str
    core: str
    cores: int
    target: tuple[tuple[str, Any], ...]
    lanes: int
    registers: int
    l1d_bytes: int
    l2_bytes: int
    opps: tuple[OperatingPoint, ...]

    def target_dict(self) -> dict[str, Any]:
        """Return the target as TVM takes it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.target}


@dataclass(frozen=True)
class PublishedLevels:
    """Operating points and a power coefficient that a publication used for the device, beside the kernel's figures."""

    opps: tuple[OperatingPoint, ...]
    watts_per_hz_v2: float


@dataclass(frozen=True)
class Device:
    """A board or phone; code is generated for the first cluster."""

    name: str
    title: str
    clusters: tuple[Cluster, ...]
    source: str
    published: PublishedLevels | None = None

    @property
    def cluster(self) -> Cluster:
        """The cluster that code is generated for."""
        return self.clusters[0]

    def default_frequencies(self, levels: int) -> tuple[float, ...]:
        """Return the top OPP, the lowest, and evenly spaced ones between, descending, in Hz."""
        hz = [o.hz for o in self.cluster.opps]
        if not hz:
            hz = list(HOST_LABELS_HZ)
        if levels == 1:
            return (hz[0],)
        if levels > len(hz):
            raise Rt3Error(f"{levels} levels but device '{self.name}' has {len(hz)} operating points: pass --freqs")
        return tuple(hz[round(i * (len(hz) - 1) / (levels - 1))] for i in range(levels))


def parse_frequency(text: str) -> float:
    """Return the Hz of '1.4GHz', '800MHz' or a plain number of Hz."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmg]?hz|)\s*", text.lower())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1e6 <= value <= 1e11:
        raise Rt3Error(f"frequency '{text}': give it as 1.4GHz, 800MHz or Hz, between 1 MHz and 100 GHz")
    return value


def parse_frequencies(text: str, levels: int) -> tuple[float, ...]:
    """Return comma-separated frequencies, one per level, strictly descending."""
    values = tuple(parse_frequency(part) for part in text.split(","))
    if len(values) != levels:
        raise Rt3Error(
            f"--freqs names {len(values)} frequencies, the checkpoint has {levels} levels: give one per level"
        )
    if any(a <= b for a, b in pairwise(values)):
        raise Rt3Error(f"--freqs {text}: give them from the highest to the lowest, each once")
    return values


def names() -> list[str]:
    """Return the devices that come with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("rt3_tvm.targets").iterdir() if p.name.endswith(".toml")
    )


def load(name: str) -> Device:
    """Return a device by its name, or from a path that ends in .toml."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise Rt3Error(f"no such device file: '{name}'")
        return parse(path.read_text(encoding="utf-8"), name, path.stem)
    if name not in names():
        raise Rt3Error(f"unknown device '{name}': choose from {choices(names())}, or pass --device-file board.toml")
    text = (resources.files("rt3_tvm.targets") / f"{name}.toml").read_text(encoding="utf-8")
    return parse(text, f"{name}.toml", name)


def parse(text: str, where: str, name: str) -> Device:
    """Return the device that a TOML text describes; ``where`` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Rt3Error(f"{where}: not TOML: {error}") from error
    if table.get("detect"):
        return _detect_host(name, str(table.get("title", "")))
    clusters = table.get("cluster")
    if not isinstance(clusters, list) or not clusters:
        raise Rt3Error(f"{where}: no [[cluster]]")
    return Device(
        name=name,
        title=str(table.get("title", name)),
        clusters=tuple(_parse_cluster(c, f"{where}: cluster {i}") for i, c in enumerate(clusters)),
        source=str(table.get("source", "")),
        published=_parse_published(table["published"], f"{where}: published") if "published" in table else None,
    )


def _parse_published(table: Any, where: str) -> PublishedLevels:
    if not isinstance(table, dict):
        raise Rt3Error(f"{where}: must be a table")
    coefficient = table.get("watts_per_hz_v2")
    if not isinstance(coefficient, float) or not 0.0 < coefficient < 1e-6:
        raise Rt3Error(f"{where}: 'watts_per_hz_v2' must be a float in (0, 1e-6), not {coefficient!r}")
    return PublishedLevels(_parse_opps(table.get("opps"), where), coefficient)


def _parse_opps(rows: Any, where: str) -> tuple[OperatingPoint, ...]:
    if not isinstance(rows, list):
        raise Rt3Error(f"{where}: 'opps' must be a list, not {rows!r}")
    opps = []
    for i, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(v, int | float) for v in row)):
            raise Rt3Error(f"{where}: opps[{i}] must be [Hz, V], not {row!r}")
        hz, volts = float(row[0]), float(row[1])
        if not (1e6 <= hz <= 1e11 and 0.0 <= volts <= 2.0):
            raise Rt3Error(f"{where}: opps[{i}] = {row!r} is not a plausible [Hz, V]")
        opps.append(OperatingPoint(hz, volts))
    if any(a.hz <= b.hz for a, b in pairwise(opps)):
        raise Rt3Error(f"{where}: opps must descend in Hz, each once")
    return tuple(opps)


def _parse_cluster(table: dict[str, Any], where: str) -> Cluster:
    def take(key: str, kind: type) -> Any:
        value = table.get(key)
        if not isinstance(value, kind) or (isinstance(value, int) and value <= 0):
            raise Rt3Error(
                f"{where}: '{key}' must be a {'positive ' if kind is int else ''}{kind.__name__}, not {value!r}"
            )
        return value

    target = take("target", dict)
    if target.get("kind") != "llvm":
        raise Rt3Error(f"{where}: target.kind must be 'llvm', not {target.get('kind')!r}")
    return Cluster(
        name=take("name", str),
        core=take("core", str),
        cores=take("cores", int),
        target=tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in target.items()),
        lanes=take("lanes", int),
        registers=take("registers", int),
        l1d_bytes=take("l1d_bytes", int),
        l2_bytes=take("l2_bytes", int),
        opps=_parse_opps(table.get("opps"), where),
    )


@cache
def _detect_host(name: str, title: str) -> Device:
    """Return this machine: LLVM's CPU name less the features that it hides, caches and cpufreq table from sysfs."""
    from tvm.target import codegen

    machine = platform.machine()
    mcpu = str(codegen.llvm_get_system_cpu())
    target: dict[str, Any] = {"kind": "llvm", "mtriple": str(codegen.llvm_get_system_triple()), "mcpu": mcpu}
    lanes, registers = 4, 32
    if machine in ("x86_64", "AMD64"):
        flags = set(re.findall(r"\S+", _cpuinfo("flags")))
        has = set(codegen.llvm_get_cpu_features(_target(target)))
        hidden = [f for f in VECTOR_FEATURES if f in has and f not in flags]
        if hidden:
            target["mattr"] = tuple(f"-{f}" for f in hidden)
        visible = has - set(hidden)
        lanes = 16 if "avx512vl" in visible else 8 if "avx2" in visible else 4
        registers = 32 if "avx512vl" in visible else 16
    cache_dir = Path("/sys/devices/system/cpu/cpu0/cache")
    cluster = Cluster(
        name="cpu",
        core=mcpu,
        cores=os.cpu_count() or 1,
        target=tuple(target.items()),
        lanes=lanes,
        registers=registers,
        l1d_bytes=_cache_bytes(cache_dir / "index0", 32768),
        l2_bytes=_cache_bytes(cache_dir / "index2", 524288),
        opps=_host_opps(),
    )
    return Device(name, title, (cluster,), "detected")


def _target(table: dict[str, Any]) -> Any:
    import tvm

    return tvm.target.Target(table)


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def _cache_bytes(index: Path, default: int) -> int:
    try:
        match = re.fullmatch(r"(\d+)K", (index / "size").read_text(encoding="utf-8").strip())
    except OSError:
        return default
    return int(match[1]) * 1024 if match else default


def _host_opps() -> tuple[OperatingPoint, ...]:
    table = Path("/sys/devices/system/cpu/cpufreq/policy0/scaling_available_frequencies")
    try:
        khz = {int(k) for k in table.read_text(encoding="utf-8").split()}
    except (OSError, ValueError):
        return ()
    return tuple(OperatingPoint(k * 1e3, 0.0) for k in sorted(khz, reverse=True))
