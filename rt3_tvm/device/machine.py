"""The machine this runs on, as a device: cores, instruction sets, caches and frequencies, from /proc and sysfs.

What cannot be read is left out of the device and named. Which files there are: Linux's Documentation/ABI
(sysfs-devices-system-cpu), Documentation/admin-guide/pm/cpufreq.rst.
"""

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rt3_tvm.device.types import Cluster, Device, OperatingPoint
from rt3_tvm.errors import Rt3Error

X86_VECTOR_FEATURES = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512vnni",
    "avxvnni",
)
"""x86 features that change the code that is written; a hypervisor may hide what the CPU model has."""

ARM_CORES = {
    (0x41, 0xC05): "cortex-a5",
    (0x41, 0xC07): "cortex-a7",
    (0x41, 0xC08): "cortex-a8",
    (0x41, 0xC09): "cortex-a9",
    (0x41, 0xC0E): "cortex-a17",
    (0x41, 0xC0F): "cortex-a15",
    (0x41, 0xD03): "cortex-a53",
    (0x41, 0xD04): "cortex-a35",
    (0x41, 0xD05): "cortex-a55",
    (0x41, 0xD07): "cortex-a57",
    (0x41, 0xD08): "cortex-a72",
    (0x41, 0xD09): "cortex-a73",
    (0x41, 0xD0A): "cortex-a75",
    (0x41, 0xD0B): "cortex-a76",
    (0x41, 0xD0C): "neoverse-n1",
    (0x41, 0xD0D): "cortex-a77",
    (0x41, 0xD40): "neoverse-v1",
    (0x41, 0xD41): "cortex-a78",
    (0x41, 0xD44): "cortex-x1",
    (0x41, 0xD46): "cortex-a510",
    (0x41, 0xD47): "cortex-a710",
    (0x41, 0xD48): "cortex-x2",
    (0x41, 0xD49): "neoverse-n2",
    (0x41, 0xD4D): "cortex-a715",
    (0x41, 0xD4E): "cortex-x3",
    (0x41, 0xD4F): "neoverse-v2",
    (0x41, 0xD80): "cortex-a520",
    (0x41, 0xD81): "cortex-a720",
    (0x41, 0xD82): "cortex-x4",
    (0x51, 0x802): "cortex-a75",  # Kryo 3xx Gold
    (0x51, 0x803): "cortex-a55",  # Kryo 3xx Silver
    (0x51, 0x804): "cortex-a76",  # Kryo 4xx Gold
    (0x51, 0x805): "cortex-a55",  # Kryo 4xx Silver
}
"""LLVM's name of a core by implementer and part (MIDR_EL1). Source: Linux arch/arm64/include/asm/cputype.h."""

ARM_FEATURES = {
    "neon": "neon",
    "vfpv4": "vfp4",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""LLVM's name of a feature by the kernel's in /proc/cpuinfo."""


@dataclass(frozen=True)
class Probe:
    """A machine as it was read, and what could not be."""

    device: Device
    missing: tuple[str, ...]


@cache
def detect(name: str, title: str) -> Device:
    """Return this machine, as far as it can be read."""
    return replace(probe(Path("/"), name).device, title=title)


def probe(root: Path, name: str) -> Probe:
    """Read a machine from its file system.

    Parameters
    ----------
    root
        What stands for ``/``: another one shows files of another machine.
    name
        What the device will be called.
    """
    cpus = _read_cpuinfo(root / "proc/cpuinfo")
    missing: list[str] = []
    clusters: list[Cluster] = []
    for members in _cluster_members(root, cpus):
        cluster, absent = _read_cluster(root, members, cpus[members[0]], f"cpu{len(clusters)}")
        clusters.append(cluster)
        missing += [f"cluster '{cluster.name}': {what}" for what in absent]
    if len(clusters) == 1:
        clusters = [replace(clusters[0], name="cpu")]
        missing = [what.replace("'cpu0'", "'cpu'") for what in missing]
    title = cpus[min(cpus)].get("model name") or (cpus[min(cpus)].get("Hardware") or platform.machine())
    missing.append("power_uw_per_mhz_v2: no file has it; see the device tree's dynamic-power-coefficient")
    kernel = _text(root / "proc/sys/kernel/osrelease") or "unknown version"
    return Probe(Device(name, title, tuple(clusters), f"probed on Linux {kernel}"), tuple(missing))


def cluster_cpus(root: Path) -> dict[str, list[int]]:
    """Return the numbers of the CPUs of each cluster, by the names that :func:`probe` gives clusters."""
    members = _cluster_members(root, _read_cpuinfo(root / "proc/cpuinfo"))
    return {"cpu" if len(members) == 1 else f"cpu{i}": cpus for i, cpus in enumerate(members)}


def _read_cpuinfo(path: Path) -> dict[int, dict[str, str]]:
    """Return the fields of each CPU of /proc/cpuinfo."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Rt3Error(f"'{path}' cannot be read: {error.strerror}: probe runs on Linux") from error
    cpus: dict[int, dict[str, str]] = {}
    shared: dict[str, str] = {}
    for block in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([^\n:]+?)\s*:[ \t]*(.*)$", block, re.MULTILINE))
        if fields.get("processor", "").isdigit():
            cpus[int(fields["processor"])] = fields
        else:
            shared |= fields  # 32-bit kernels end with a block on the board
    if not cpus:
        raise Rt3Error(f"'{path}' lists no processor: probe runs on Linux")
    return {cpu: shared | fields for cpu, fields in cpus.items()}


def _cluster_members(root: Path, cpus: dict[int, dict[str, str]]) -> list[list[int]]:
    """Return CPUs that change their frequency together; without cpufreq, CPUs of one kind."""
    groups: dict[Any, list[int]] = {}
    for cpu, fields in sorted(cpus.items()):
        related = _text(_cpu_directory(root, cpu) / "cpufreq/related_cpus")
        groups.setdefault(related or (fields.get("CPU implementer"), fields.get("CPU part")), []).append(cpu)
    return list(groups.values())


def _cpu_directory(root: Path, cpu: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{cpu}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_cluster(root: Path, members: list[int], fields: dict[str, str], name: str) -> tuple[Cluster, list[str]]:
    missing = []
    directory = _cpu_directory(root, members[0])
    sizes = dict(_cache_sizes(directory / "cache"))
    missing += [f"{key}: no {directory}/cache" for key in ("l1d_bytes", "l2_bytes") if key not in sizes]
    opps = _read_opps(root, members[0])
    if not opps:
        missing.append(f"opps: no frequencies in {directory}/cpufreq")
    elif not all(o.volts for o in opps):
        missing.append(f"supplies of opps: {root / 'sys/kernel/debug/opp'} is readable by root alone, where it exists")
    target, lanes, registers, isa = _arm_target(fields) if "CPU part" in fields else _native_target(fields)
    cluster = Cluster(
        name=name,
        core=str(target["mcpu"]),
        cores=len(members),
        target=tuple(target.items()),
        lanes=lanes,
        registers=registers,
        opps=opps,
        isa=isa,
        **sizes,
    )
    return cluster, missing


def _cache_sizes(directory: Path) -> Iterator[tuple[str, int]]:
    for index in sorted(directory.glob("index[0-9]*")):
        level, kind = _text(index / "level"), _text(index / "type")
        match = re.fullmatch(r"(\d+)([KM])", _text(index / "size"))
        if match and kind in ("Data", "Unified") and level in ("1", "2", "3"):
            key = "l1d_bytes" if level == "1" else f"l{level}_bytes"
            yield key, int(match[1]) << {"K": 10, "M": 20}[match[2]]


def _read_opps(root: Path, cpu: int) -> tuple[OperatingPoint, ...]:
    """Return the frequencies that cpufreq lists, with the supplies that debugfs shows."""
    policy = _cpu_directory(root, cpu) / "cpufreq"
    listed = _text(policy / "scaling_available_frequencies").split()
    listed = listed or [line.split()[0] for line in _text(policy / "stats/time_in_state").splitlines() if line.strip()]
    hz = {int(khz) * 1000 for khz in listed if khz.isdigit()}
    debug = root / f"sys/kernel/debug/opp/cpu{cpu}"
    volts = {f: _text(debug / f"opp:{f}/u_volt_target") for f in hz}
    return tuple(
        OperatingPoint(float(f), int(volts[f]) * 1e-6 if volts[f].isdigit() else 0.0) for f in sorted(hz, reverse=True)
    )


def _arm_target(fields: dict[str, str]) -> tuple[dict[str, Any], int, int, str]:
    """Return target, lanes, registers and instruction set of an ARM core from its /proc/cpuinfo."""
    key = (int(fields.get("CPU implementer", "0"), 16), int(fields["CPU part"], 16))
    flags = fields.get("Features", "").split()
    wide = "asimd" in flags
    core = ARM_CORES.get(key, "generic")
    features = list(dict.fromkeys(f"+{ARM_FEATURES[f]}" for f in flags if f in ARM_FEATURES))
    target: dict[str, Any] = {"kind": "llvm"}
    if wide:
        return (
            target | {"mtriple": "aarch64-linux-gnu", "mcpu": core, "mattr": tuple(features)},
            4,
            32,
            " ".join(["armv8-a", *(f.lstrip("+") for f in features)]),
        )
    target |= {
        "mtriple": "armv7a-unknown-linux-gnueabihf",
        "mcpu": core,
        "mattr": tuple(features),
        "mfloat-abi": "hard",
    }
    return target, 4, 16, " ".join(["armv7-a", *(f.lstrip("+") for f in features)])


def _native_target(fields: dict[str, str]) -> tuple[dict[str, Any], int, int, str]:
    """Return the same of the CPU that runs this: LLVM's name for it less the features that a hypervisor hides."""
    from tvm.target import Target, codegen

    target: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": str(codegen.llvm_get_system_triple()),
        "mcpu": str(codegen.llvm_get_system_cpu()),
    }
    flags = set(fields.get("flags", "").replace("_vnni", "vnni").split())
    has = set(codegen.llvm_get_cpu_features(Target(target)))
    hidden = [f for f in X86_VECTOR_FEATURES if f in has and flags and f not in flags]
    if hidden:
        target["mattr"] = tuple(f"-{f}" for f in hidden)
    visible = has - set(hidden)
    lanes = 16 if "avx512vl" in visible else 8 if "avx2" in visible else 4
    isa = " ".join(f for f in X86_VECTOR_FEATURES if f in visible)
    return target, lanes, 32 if "avx512vl" in visible else 16, isa
