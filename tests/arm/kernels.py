"""Kernels by themselves under qemu: a program reads arrays, calls each kernel on its own, and writes the arrays back."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import arm
import numpy as np
from tvm import tirx

from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.schedules import KERNEL_ATTR, scheduled
from rt3_tvm.schedules.cpu import CpuShape
from tests.arm.test_cross import CASES, compilers, qemu

CORES = {"A76": "aarch64-a76", "A53": "aarch64-a53", "A7": "odroid-xu3"}
"""Case of ``test_cross`` by the name of a core in benchmarks/arm.py."""
LINE = 64

PROGRAM = """
#include <stdio.h>
#include <stdint.h>
static char memory[{size}] __attribute__((aligned(64)));
{declarations}
int main(int argc, char **argv) {{
    FILE *file = fopen(argv[1], "rb");
    if (argc != 3 || !file || fread(memory, 1, sizeof memory, file) != sizeof memory) return 1;
    fclose(file);
    {calls}
    file = fopen(argv[2], "wb");
    return !file || fwrite(memory, 1, sizeof memory, file) != sizeof memory || fclose(file);
}}
"""

Call = tuple[str, tirx.PrimFunc, Sequence[np.ndarray]]
"""A family, its kernel, and the arrays that it takes."""


def run_under_qemu(core: str, calls: Sequence[Call], folder: Path) -> list[list[np.ndarray]]:
    """Return the arrays of each call as the kernels leave them on a core."""
    _, machine, cpu, gnu, zig = CASES[CORES[core]]
    emulator, (cc, _, sysroot) = qemu(machine), compilers(gnu, zig)
    table, cluster, shape = KernelTable(), arm.cluster_of(core), CpuShape.of(arm.cluster_of(core))
    numbers = [table.index(scheduled(func.with_attr(KERNEL_ATTR, family), shape)) for family, func, _ in calls]
    table.compile(cluster.target_dict(), folder / "kernels.o")
    arrays = [array for call in calls for array in call[2]]
    starts = np.cumsum([0, *(-(-a.nbytes // LINE) * LINE for a in arrays)])
    memory = np.zeros(starts[-1], np.uint8)
    for start, array in zip(starts, arrays, strict=False):
        memory[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    (folder / "in").write_bytes(memory.tobytes())
    (folder / "main.c").write_text(_program(table, numbers, [len(call[2]) for call in calls], starts), encoding="utf-8")
    command = [*cc.split(), "-O1", "-w", "main.c", "kernels.o", "-lm", "-o", "main"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    # An instruction that this core lacks would end it with SIGILL.
    command = [emulator, "-L", sysroot or "/", "-cpu", cpu, "./main", "in", "out"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    left = np.frombuffer((folder / "out").read_bytes(), np.uint8)
    done = iter(
        left[start : start + a.nbytes].view(a.dtype).reshape(a.shape) for start, a in zip(starts, arrays, strict=False)
    )
    return [[next(done) for _ in call[2]] for call in calls]


def _program(table: KernelTable, numbers: list[int], counts: list[int], starts: np.ndarray) -> str:
    declarations = "".join(f"void {k.symbol}();\n" for k in table.kernels)
    places, calls = iter(starts), []
    for number, count in zip(numbers, counts, strict=True):
        k = table.kernels[number]
        pointers = "".join(f"memory + {next(places)}, " for _ in range(count))
        calls.append(f"{k.symbol}({pointers}(int32_t)0, (int32_t){k.tasks});")
    return PROGRAM.format(size=starts[-1], declarations=declarations, calls="\n    ".join(calls))
