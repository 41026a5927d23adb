"""The peak of one core: what kernels are measured against."""

import json
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from rt3_tvm.codegen.link import choose_compiler, run_compiler


def peak_gflops() -> float:
    """Return the GFLOP/s of fused multiply-adds of one core of this machine, measured once: the best of ten tries."""
    return core_limits()["peak_gflops"]


@cache
def core_limits() -> dict[str, float]:
    """Return what ``peak.c`` measures on this machine: GFLOP/s, GHz and GB/s by name."""
    import platform

    machine = platform.machine()
    source = resources.files("rt3_tvm.bench") / "peak.c"
    with tempfile.TemporaryDirectory(prefix="rt3-") as name:
        folder = Path(name)
        (folder / "peak.c").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        compiler = choose_compiler(f"{machine}-linux-gnu", None, machine)
        run_compiler(compiler, ["-std=gnu11", "-O2", "-march=native", "peak.c", "-o", "peak"], folder)
        printed = subprocess.run([folder / "peak"], check=True, capture_output=True, text=True).stdout
    units = ("_gflops", "_ghz", "_gbytes")
    return {name: float(value) for name, value in json.loads(printed).items() if name.endswith(units)}


def clock_hz() -> float:
    """Return the clock that one core of this machine ran at, in Hz: a chain of additions takes a cycle each."""
    return core_limits()["clock_ghz"] * 1e9


def stream_gbytes() -> float:
    """Return the GB/s at which one core of this machine reads memory that no cache holds."""
    return core_limits()["stream_gbytes"]
