"""A bundle for another CPU, run under qemu-user: the machine code itself, where its kernels' host twins prove the transforms.

Emulation takes some fifty times as long, so of a bundle's variants those of its densest and its sparsest level at its shortest
length run, once each, on a padded batch.
"""

import io
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rt3_tvm.codegen.link import CROSS, run_compiler, runtime_directory
from rt3_tvm.errors import JobError
from rt3_tvm.model import IDS, NUMBERS
from rt3_tvm.trials import Trial

EMULATORS = {"aarch64": "qemu-aarch64", "armv7a": "qemu-arm"}
"""Programs of qemu-user by architecture; Debian's static builds add ``-static``."""
CANNOT_OPEN = 3
"""Exit status of drive.c where the bundle refuses the CPU."""
PROGRAM = "rt3-drive"
LONGEST_S = 900
MAX_RANK = 4
DTYPES = {NUMBERS: 0, "int32": 1, IDS: 2}


class Unavailable(Exception):
    """Why a bundle cannot be emulated here; the metadata say it."""


@dataclass(frozen=True)
class Emulator:
    """A command that runs a program of the target, and the program, which runs a bundle."""

    command: tuple[str, ...]
    program: Path

    def run(self, level: int, trial: Trial, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return the outputs of one level.

        Raises
        ------
        Unavailable
            The emulated CPU lacks what the bundle needs.
        JobError
            The bundle fails, or dies.
        """
        self.drive(level, trial.inputs)
        return _decode((self.program.parent / "outputs.bin").read_bytes(), outputs)

    def drive(
        self, level: int, inputs: Mapping[str, np.ndarray], runs: int | None = None, options: Sequence[str] = ()
    ) -> str:
        """Run the program and return what it prints; errors as for :meth:`run`.

        ``runs``: as many inferences on one thread, with the address of ``rt3_open`` printed. ``options`` are those of qemu.
        """
        folder = self.program.parent
        (folder / "inputs.bin").write_bytes(_encode(inputs))
        command = [
            *self.command,
            *options,
            str(self.program),
            str(level),
            str(folder / "inputs.bin"),
            str(folder / "outputs.bin"),
            *([] if runs is None else [str(runs)]),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_S)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{self.command[0]} takes more than {LONGEST_S} s") from error
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode == CANNOT_OPEN:
            raise Unavailable(f"{' '.join(self.command)}: {said}")
        if done.returncode != 0:
            raise JobError(f"level {level} fails with {done.returncode} under {' '.join(self.command)}: {said}")
        return done.stdout


def find_emulator(target: Mapping[str, Any], compiler: list[str], bundle: Path, soname: str) -> Emulator:
    """Return what runs a bundle that was linked under a name; the program stands in a folder beside it.

    Raises
    ------
    Unavailable
        No emulator, no libraries of the target, or no program.
    """
    arch = str(target.get("mtriple", "")).split("-", 1)[0]
    if arch not in EMULATORS:
        raise Unavailable(f"no emulator of {arch} is used")
    name = EMULATORS[arch]
    found = next(filter(None, (shutil.which(f"{name}{suffix}") for suffix in ("", "-static"))), None)
    if found is None:
        raise Unavailable(f"{name} is not installed")
    root = Path("/usr") / CROSS[arch][0]
    if not root.is_dir():
        raise Unavailable(f"no libraries of the target in {root}")
    folder = bundle.parent / "emulated"
    folder.mkdir()
    (folder / soname).symlink_to(bundle)
    arguments = [
        "-std=c11",
        "-O1",
        "-fPIC",
        f"-I{runtime_directory()}",
        str(Path(__file__).with_name("drive.c")),
        soname,
    ]
    try:
        run_compiler(compiler, [*arguments, "-Wl,-rpath,$ORIGIN", "-o", PROGRAM], folder)
    except JobError as error:
        raise Unavailable(str(error)) from error
    return Emulator((found, "-cpu", _cpu(found, str(target.get("mcpu", ""))), "-L", str(root)), folder / PROGRAM)


def _cpu(emulator: str, wanted: str) -> str:
    """Return the core that qemu knows by this name, else the one that has everything."""
    done = subprocess.run([emulator, "-cpu", "help"], capture_output=True, text=True, check=False)
    return wanted if wanted in done.stdout.split() else "max"


def _encode(inputs: Mapping[str, np.ndarray]) -> bytes:
    parts = [np.int32(len(inputs)).tobytes()]
    for name, value in inputs.items():
        shape = np.ones(MAX_RANK, np.int64)
        shape[: value.ndim] = value.shape
        kind = np.array([DTYPES[str(value.dtype)], value.ndim], np.int32)
        parts += [
            name.encode().ljust(64, b"\0"),
            kind.tobytes(),
            shape.tobytes(),
            np.ascontiguousarray(value).tobytes(),
        ]
    return b"".join(parts)


def _decode(content: bytes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    outputs: dict[str, np.ndarray] = {}
    for name in names:
        rank = int(np.frombuffer(file.read(4), np.int32)[0])
        shape = np.frombuffer(file.read(8 * MAX_RANK), np.int64)[:rank]
        count = int(np.prod(shape))
        outputs[name] = np.frombuffer(file.read(np.dtype(NUMBERS).itemsize * count), NUMBERS).reshape(shape)
    return outputs
