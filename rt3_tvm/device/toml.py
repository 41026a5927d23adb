"""Devices as TOML: the ones of ``targets/``, and a user's own."""

import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from rt3_tvm.device.types import Cluster, Device, OperatingPoint, PublishedLevels
from rt3_tvm.errors import Rt3Error, choices

_DEVICE_KEYS = {"title", "source", "notes", "published", "cluster"}
_CLUSTER_KEYS = {f.name for f in fields(Cluster)}
_LARGEST = {
    "cores": 1024,
    "lanes": 64,
    "registers": 128,
    "l1d_bytes": 1 << 22,
    "l2_bytes": 1 << 28,
    "l3_bytes": 1 << 32,
    "capacity": 1 << 16,
    "power_uw_per_mhz_v2": 10_000,
    "static_w": 100,
}
"""Above these a number has the wrong unit."""
ARCHITECTURES = ("aarch64", "arm", "armv7a", "i686", "riscv64", "x86_64")
"""First parts of target triples; LLVM crashes on one it does not know."""


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
        try:
            return parse(path.read_text(encoding="utf-8"), name, path.stem)
        except (OSError, UnicodeDecodeError) as error:
            raise Rt3Error(f"{name}: {error}") from error
    if name not in names():
        raise Rt3Error(f"unknown device '{name}': choose from {choices(names())}, or give `device` board.toml")
    return parse(_text_of(name), f"{name}.toml", name, trusted=True)


def _text_of(name: str) -> str:
    return (resources.files("rt3_tvm.targets") / f"{name}.toml").read_text(encoding="utf-8")


def tag_table() -> dict[str, dict[str, Any]]:
    """Return the TVM target of every cluster that comes with the package, by its tag: ``rt3/odroid-xu3-a7``.

    Clusters of equal cores share a tag. Read without asking LLVM about the cores: this runs while TVM is imported.
    """
    tags = {}
    for name in names():
        for cluster in tomllib.loads(_text_of(name)).get("cluster", []):
            tags[tag_of(name, cluster["core"])] = cluster["target"]
    return tags


def tag_of(device: str, core: str) -> str:
    """Return the target tag of a device's cluster."""
    return f"rt3/{device}-{core.removeprefix('cortex-')}"


def parse(text: str, where: str, name: str, trusted: bool = False) -> Device:
    """Return the device that a TOML text describes.

    Parameters
    ----------
    where
        What errors call the text.
    trusted
        Whether the names of cores are taken as they are. Else LLVM is asked for them, which imports TVM and takes seconds; for
        the devices that come with the package the tests ask it.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Rt3Error(f"{where}: not TOML: {error}") from error
    if table.get("detect") is True:
        from rt3_tvm.device.machine import detect

        return detect(name, str(table.get("title", "")))
    _reject_unknown(table, _DEVICE_KEYS, where)
    clusters = table.get("cluster")
    if not isinstance(clusters, list) or not clusters:
        raise Rt3Error(f"{where}: no [[cluster]]")
    parsed = tuple(_parse_cluster(c, f"{where}: cluster {i}", trusted) for i, c in enumerate(clusters))
    for a, b in pairwise(sorted(c.name for c in parsed)):
        if a == b:
            raise Rt3Error(f"{where}: two clusters have the name '{a}'")
    return Device(
        name=name,
        title=_text(table, "title", name, where),
        clusters=parsed,
        source=_text(table, "source", "", where),
        published=_parse_published(table["published"], f"{where}: published") if "published" in table else None,
        notes=_text(table, "notes", "", where),
    )


def _reject_unknown(table: dict[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise Rt3Error(f"{where}: unknown key '{key}': choose from {choices(known)}")


def _text(table: dict[str, Any], key: str, default: str, where: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise Rt3Error(f"{where}: '{key}' must be a text, not {value!r}")
    return value


def _parse_published(table: Any, where: str) -> PublishedLevels:
    if not isinstance(table, dict):
        raise Rt3Error(f"{where}: must be a table")
    _reject_unknown(table, {"opps", "power_uw_per_mhz_v2"}, where)
    opps = _parse_opps(table.get("opps"), where)
    return PublishedLevels(opps, _number(table, "power_uw_per_mhz_v2", where))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse_opps(rows: Any, where: str) -> tuple[OperatingPoint, ...]:
    if not isinstance(rows, list):
        raise Rt3Error(f"{where}: 'opps' must be a list of [Hz, V] or [Hz], not {rows!r}")
    opps = []
    for i, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) in (1, 2) and all(map(_is_number, row))):
            raise Rt3Error(f"{where}: opps[{i}] must be [Hz, V], or [Hz] where the supply is unknown, not {row!r}")
        hz, volts = float(row[0]), float(row[1]) if len(row) == 2 else 0.0
        if not 1e6 <= hz <= 1e11:
            raise Rt3Error(f"{where}: opps[{i}] = {row!r}: {hz:g} Hz is outside 1 MHz to 100 GHz")
        if len(row) == 2 and not 0.3 <= volts <= 2.0:
            raise Rt3Error(f"{where}: opps[{i}] = {row!r}: {volts:g} V is outside 0.3 to 2 V")
        opps.append(OperatingPoint(hz, volts))
    if any(a.hz <= b.hz for a, b in pairwise(opps)):
        raise Rt3Error(f"{where}: opps must descend in Hz, each once")
    return tuple(opps)


def _number(table: dict[str, Any], key: str, where: str, default: float | None = None) -> float:
    value: Any = table.get(key, default)
    if not _is_number(value) or not (value > 0 or value == default) or value > _LARGEST[key]:
        raise Rt3Error(f"{where}: '{key}' must be a number above 0 and up to {_LARGEST[key]}, not {value!r}")
    return float(value)


def _parse_cluster(table: Any, where: str, trusted: bool) -> Cluster:
    if not isinstance(table, dict):
        raise Rt3Error(f"{where}: must be a table")
    _reject_unknown(table, _CLUSTER_KEYS, where)

    def integer(key: str, default: int | None = None) -> int:
        value = _number(table, key, where, default)
        if value != int(value):
            raise Rt3Error(f"{where}: '{key}' must be a whole number, not {value!r}")
        return int(value)

    def text(key: str) -> str:
        if key not in table:
            raise Rt3Error(f"{where}: '{key}' is missing")
        return _text(table, key, "", where)

    core = text("core")
    target = dict(_parse_target(table.get("target"), where))
    if not trusted:
        _check_cores({"core": core, "target.mcpu": target["mcpu"]}, target["mtriple"], where)
    return Cluster(
        name=text("name"),
        core=core,
        cores=integer("cores"),
        target=tuple(target.items()),
        lanes=integer("lanes"),
        registers=integer("registers"),
        opps=_parse_opps(table.get("opps"), where),
        l1d_bytes=integer("l1d_bytes", 0),
        l2_bytes=integer("l2_bytes", 0),
        l3_bytes=integer("l3_bytes", 0),
        isa=_text(table, "isa", "", where),
        capacity=integer("capacity", 0),
        power_uw_per_mhz_v2=_number(table, "power_uw_per_mhz_v2", where, 0),
        static_w=_number(table, "static_w", where, 0),
    )


def _parse_target(target: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Check a target and yield its entries, hashable."""
    if not isinstance(target, dict):
        raise Rt3Error(f"{where}: 'target' must be a table, not {target!r}")
    if target.get("kind") != "llvm":
        raise Rt3Error(f"{where}: target.kind must be 'llvm', not {target.get('kind')!r}")
    for key in ("mtriple", "mcpu"):
        if not isinstance(target.get(key), str):
            raise Rt3Error(f"{where}: target.{key} must be a text, not {target.get(key)!r}")
    parts = target["mtriple"].split("-")
    if parts[0] not in ARCHITECTURES:
        known_names = choices(ARCHITECTURES)
        raise Rt3Error(f"{where}: target.mtriple: unknown architecture '{parts[0]}': choose from {known_names}")
    if parts[0].startswith("arm") and len(parts) != 4:  # else LLVM does not see the EABI
        raise Rt3Error(
            f"{where}: target.mtriple '{target['mtriple']}' needs four parts: {parts[0]}-unknown-linux-gnueabihf"
        )
    for key, value in target.items():
        yield key, tuple(value) if isinstance(value, list) else value


def _check_cores(names: dict[str, str], triple: str, where: str) -> None:
    """Check that LLVM knows the cores that keys name."""
    known = _known_cores(triple)
    for key, value in names.items():
        if value not in known:
            raise Rt3Error(f"{where}: {key}: unknown core '{value}': {_nearest(value, known)}")


def _nearest(core: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    return f"choose from those LLVM knows, for example {choices(get_close_matches(core, known, 6, 0.3) or known[:6])}"


@cache
def _known_cores(triple: str) -> tuple[str, ...]:
    """Return the cores that TVM's LLVM generates code for."""
    from tvm.target import Target, codegen

    return tuple(str(c) for c in codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": triple})))
