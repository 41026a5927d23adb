"""Writing files whole or not at all, and folders that one process writes at a time."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rt3_tvm.errors import JobError, Rt3Error

LOCK = ".lock"
"""File of a folder that the process which writes there holds; the system lets go of it when the process ends, however that is."""


def write_text(path: Path, text: str) -> None:
    """Write a text file under another name beside it and rename it when it is whole."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise JobError(f"cannot write '{path}': {error.strerror or error}") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder where there is none, and hold it against other processes.

    Raises
    ------
    Rt3Error
        Another process holds it.
    JobError
        It cannot be written, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise JobError(f"cannot write '{folder}': {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Rt3Error(
                f"'{folder}' is in use by another process: wait for it, or choose another `output`"
            ) from error
        except OSError as error:  # a file system without locks
            raise JobError(f"cannot lock '{folder}': {error.strerror or error}") from error
        yield
