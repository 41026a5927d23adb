"""The ladder of whole models for ARM: rows of counted instructions, and of modelled cycles, for ``run.py arm``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rt3_tvm.bench.arm import KernelCount, Ladder, bench_arm
from rt3_tvm.bench.arm_report import HEADS, IN_LOOPS

CORES = {
    "A7": ("odroid-xu3", "LITTLE"),
    "A53": ("rk3399", "little"),
    "A55": ("rk3588", "little"),
    "A76": ("rk3588", "big0"),
    "X1": ("pixel6", "big"),
}
"""A device and a cluster for each core."""
LEAST_SHARE = 0.01
"""Families with a smaller part of an inference have no row of their own."""


def rows(core: str, bundle: Path) -> Iterator[dict[str, Any]]:
    """Yield the families of each level and length, those with most instructions first, and their sum, in millions."""
    ladder = bench_arm(bundle)
    for rung in ladder.rungs:
        facts = {"core": core, "tokens": rung.length, "density": rung.density}
        shown = [k for k in rung.families if k.instructions >= LEAST_SHARE * rung.instructions]
        for kernel in (*shown, rung.whole):
            yield facts | {"what": kernel.symbol} | _figures(kernel, ladder)


def _figures(kernel: KernelCount, ladder: Ladder) -> dict[str, Any]:
    kinds = {head: _millions(kernel.kinds.get(kind, 0)) for kind, head in HEADS.items()}
    cycles = {"Mcycles": _millions(kernel.cycles), "modelled by": ladder.model or "-"}
    return {"M": _millions(kernel.instructions)} | kinds | {IN_LOOPS: kernel.stack_stores_in_loops} | cycles


def _millions(value: float | None) -> float | str:
    return value / 1e6 if value else ""
