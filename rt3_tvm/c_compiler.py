"""The C compiler of this machine, for what is compiled on use, and running any compiler."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from rt3_tvm.errors import JobError


def native_compiler() -> list[str] | None:
    """Return the command that compiles C for this machine: that of ``CC``, else the first that is installed, else None."""
    native = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    return None if native is None else shlex.split(native)


def run_compiler(command: list[str], arguments: list[str], folder: Path) -> None:
    """Run the compiler in a folder; its first complaint is the error."""
    try:
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise JobError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
        raise JobError(f"{shlex.join(command)} failed with {done.returncode}: {first}")
