"""Instructions of a bundle counted one by one: qemu-user runs it, a plugin counts its blocks (``arm_count.c``).

What one inference executes is what two inferences execute less what the first one does: loading, opening and warming up
cancel, and the figure is the same every time.
"""

import platform
import re
import subprocess
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from rt3_tvm.codegen import cache
from rt3_tvm.codegen.emulate import Emulator, Unavailable, find_emulator
from rt3_tvm.codegen.link import choose_compiler, compiler_version, run_compiler
from rt3_tvm.errors import JobError, Rt3Error

SOURCE = "arm_count.c"
LAST_OF_FIRST_INTERFACE = 8
"""Versions of qemu up to this one know plugins of interface 1 alone, later ones none of it."""


@dataclass(frozen=True)
class Executed:
    """How often each instruction of a bundle runs in one inference, by address; ``outside``: what runs in other code."""

    counts: Mapping[int, int]
    outside: int

    @property
    def total(self) -> int:
        """All instructions of one inference."""
        return sum(self.counts.values()) + self.outside


@dataclass(frozen=True)
class InstructionCounter:
    """What counts the instructions of one bundle."""

    emulator: Emulator
    plugin: Path
    opens_at: int
    """Where the bundle's file has ``rt3_open``."""
    addresses: tuple[int, ...]
    """Of all instructions of the bundle, ascending."""

    def count(self, level: int, inputs: Mapping[str, np.ndarray]) -> Executed:
        """Return what one inference of a level executes.

        Raises
        ------
        JobError
            The bundle does not run.
        """
        (one, outside_one), (two, outside_two) = (self._run(level, inputs, runs) for runs in (1, 2))
        two.subtract(one)
        return Executed({a: n for a, n in sorted(two.items()) if n}, outside_two - outside_one)

    def _run(self, level: int, inputs: Mapping[str, np.ndarray], runs: int) -> tuple[Counter[int], int]:
        file = self.plugin.with_name("counts.txt")
        try:
            printed = self.emulator.drive(level, inputs, runs, ("-plugin", f"{self.plugin},out={file}"))
        except Unavailable as error:
            raise JobError(f"cannot count: {error}") from error
        base = int(printed.split()[0], 16) - self.opens_at
        counts: Counter[int] = Counter()
        outside = 0
        for line in file.read_text(encoding="ascii").splitlines():
            address, instructions, times = line.split()
            first = bisect_left(self.addresses, int(address, 16) - base)
            block = self.addresses[first : first + int(instructions)]
            if block and block[0] == int(address, 16) - base:
                counts.update(dict.fromkeys(block, int(times)))
            else:
                outside += int(instructions) * int(times)
        return counts, outside


@contextmanager
def counting(bundle: Path, target: Mapping[str, Any], addresses: tuple[int, ...]) -> Iterator[InstructionCounter]:
    """Yield what counts the instructions of a bundle for a target, all of whose instructions lie at ``addresses``.

    Raises
    ------
    JobError
        An emulator that takes plugins, the libraries of the target or a compiler are missing.
    """
    soname, opens_at = _names(bundle)
    compiler = choose_compiler(str(target["mtriple"]), None, platform.machine(), str(target.get("mcpu", "")))
    with tempfile.TemporaryDirectory(prefix="rt3-") as name:
        folder = Path(name)
        (folder / "bundle").symlink_to(bundle.resolve())
        try:
            emulator = find_emulator(target, compiler, folder / "bundle", soname)
        except Unavailable as error:
            raise JobError(f"cannot count: {error}") from error
        build_plugin(emulator.command[0], folder / "arm_count.so")
        yield InstructionCounter(emulator, folder / "arm_count.so", opens_at, addresses)


def _names(bundle: Path) -> tuple[str, int]:
    """Return the name that a bundle was linked under, and where its file has ``rt3_open``."""
    with bundle.open("rb") as file:
        elf = ELFFile(file)
        dynamic, symbols = elf.get_section_by_name(".dynamic"), elf.get_section_by_name(".dynsym")
        assert isinstance(dynamic, DynamicSection) and isinstance(symbols, SymbolTableSection), "it is a bundle"
        soname = next(tag.soname for tag in dynamic.iter_tags("DT_SONAME"))  # type: ignore[attr-defined]
        found = symbols.get_symbol_by_name("rt3_open")
        assert found, "every bundle has it"
        return str(soname), int(found[0].entry.st_value)


def build_plugin(emulator: str, target: Path) -> None:
    """Build the plugin for an emulator, or take the one that was built before.

    Raises
    ------
    JobError
        The emulator takes no plugins: Debian's static builds do not.
    """
    asked = [
        subprocess.run([emulator, f], capture_output=True, text=True, check=False).stdout for f in ("-h", "-version")
    ]
    if "-plugin" not in asked[0]:
        raise JobError(f"cannot count: {emulator} takes no plugins: install qemu-user, which is not static")
    version = re.search(r"version (\d+)", asked[1])
    interface = 2 if version and int(version[1]) > LAST_OF_FIRST_INTERFACE else 1
    source = (resources.files("rt3_tvm.bench") / SOURCE).read_text(encoding="utf-8")
    try:
        compiler = choose_compiler(platform.machine(), None, platform.machine())
    except Rt3Error as error:
        raise JobError(f"cannot count: {error}") from error
    key = cache.key_of(plugin=source, interface=interface, compiler=[compiler, compiler_version(compiler)])
    if cache.fetch(key, target):
        return
    target.with_name(SOURCE).write_text(source, encoding="utf-8")
    flags = ["-std=c11", "-O2", "-shared", "-fPIC", f"-DPLUGIN_VERSION={interface}"]
    run_compiler(compiler, [*flags, SOURCE, "-o", str(target)], target.parent)
    cache.store(key, target)
