"""A batch of plans as one library: all kernels in one object, an entry for each plan that TVM calls by name."""

import math
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm import tirx

from rt3_tvm.codegen.kernels import Kernel, KernelTable
from rt3_tvm.codegen.link import C_FLAGS, LINK_FLAGS, choose_compiler, run_compiler, runtime_directory
from rt3_tvm.schedules import kernel, scheduled
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import LinearPlan

LIBRARY = "kernels.so"


@dataclass(frozen=True)
class Toolchain:
    """What code is built for: sizes of the core, TVM's target, the C compiler, threads of a run."""

    cpu: CpuShape
    target: dict[str, Any]
    compiler: list[str]
    threads: int = 1

    @classmethod
    def of(cls, cpu: CpuShape, target: dict[str, Any], cross_compiler: str | None, threads: int) -> "Toolchain":
        """Return the tools for a target."""
        triple, core = str(target.get("mtriple", "")), str(target.get("mcpu", ""))
        return cls(cpu, target, choose_compiler(triple, cross_compiler, platform.machine(), core), threads)


@dataclass(frozen=True)
class Array:
    """An argument of a kernel: its name, shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Library:
    """A library that was built: the name of the entry of each plan, and its arguments; the image is the file's content."""

    image: bytes
    entries: tuple[str, ...]
    arrays: tuple[tuple[Array, ...], ...]


def build_plans(plans: Sequence[LinearPlan], tools: Toolchain) -> Library:
    """Build the kernels of some plans."""
    table, entries, arrays = KernelTable(), [], []
    for i, plan in enumerate(plans):
        functions = [kernel(plan.family, plan, part, "none", tools.cpu) for part in plan.parts]
        indices = [table.index(scheduled(func, tools.cpu)) for func in functions]
        entries.append((f"plan{i}", [table.kernels[k] for k in indices]))
        arrays.append(tuple(map(array_of, functions[0].params)))
    return Library(link(table, entries, tools), tuple(name for name, _ in entries), tuple(arrays))


def array_of(buffer: Any) -> Array:
    """Return what a parameter of a kernel is."""
    assert isinstance(buffer, tirx.Buffer)
    return Array(str(buffer.name), tuple(int(d) for d in buffer.ty.shape), str(buffer.ty.dtype))


def link(table: KernelTable, entries: Sequence[tuple[str, Sequence[Kernel]]], tools: Toolchain) -> bytes:
    """Return the library of a table of kernels with an entry for each of some lists of them."""
    arguments = max(k.arguments for k in table.kernels)
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        table.compile(tools.target, Path(folder) / "kernels.o")
        return _linked(Path(folder), _entries(table, entries), ["kernels.o"], arguments, tools.threads, tools.compiler)


def clock_library(compiler: list[str]) -> bytes:
    """Return a library without kernels: what is left is ``clock``."""
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        return _linked(Path(folder), "", [], 1, 1, compiler)


def _linked(folder: Path, entries: str, objects: list[str], arguments: int, threads: int, compiler: list[str]) -> bytes:
    """Return the library of the code of some entries and their objects in a folder."""
    source = resources.files("rt3_tvm.tune") / "call.c"
    for file in ("pool.c", "rt3.h", "rt3_internal.h"):
        shutil.copyfile(runtime_directory() / file, folder / file)
    (folder / "call.c").write_text(source.read_text(encoding="utf-8") + entries, encoding="utf-8")
    includes = ["-I.", *(f"-isystem{path}" for path in tvm_ffi.libinfo.include_paths())]
    limits = [f"-DRT3_MAX_ARGS={arguments}", f"-DRT3_MAX_THREADS={threads}"]
    flags = [*C_FLAGS, *includes, *limits, *LINK_FLAGS, *(["-pthread"] if threads > 1 else [])]
    run_compiler(compiler, [*flags, "-o", LIBRARY, "call.c", "pool.c", *objects, "-lm"], folder)
    return (folder / LIBRARY).read_bytes()


def _entries(table: KernelTable, entries: Sequence[tuple[str, Sequence[Kernel]]]) -> str:
    """Return the C code of the entries, and of what unpacks the pointers for each kernel."""
    lines = [""]
    for k in table.kernels:
        pointers = ", ".join(f"args[{i}]" for i in range(k.arguments))
        lines.append(f"void {k.symbol}({'void *, ' * k.arguments}int32_t, int32_t);")
        lines.append(
            f"static void run_{k.symbol}(void *const *args, int32_t first, int32_t last) {{ "
            f"{k.symbol}({pointers}, first, last); }}"
        )
    for name, kernels in entries:
        rows = ", ".join(f"{{run_{k.symbol}, {k.arguments}, {k.tasks}}}" for k in kernels)
        lines.append(f"PLAN({name}, {rows})")
    return "\n".join(lines) + "\n"
