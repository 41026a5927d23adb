"""Reading files that are files, writing them whole or not at all, and folders that one process writes at a time."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rt3_tvm.errors import JobError, Rt3Error

LOCK = ".lock"
"""File of a folder that the process which writes there holds; the system lets go of it when the process ends, however that is."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it; a pipe or a device, on which a reader could wait for ever, is refused.

    Raises
    ------
    Rt3Error
        It is no regular file.
    OSError
        It is not there, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Rt3Error(f"'{path}' is no regular file")
    return os.fdopen(handle, "rb")


def check_target(path: Path) -> None:
    """Refuse to write where no file can be made: early, before the work that makes it.

    Raises
    ------
    Rt3Error
        The folder is none, or the path is a folder, a device, a pipe or anything else that is no regular file.
    """
    try:
        if not path.parent.is_dir():
            raise Rt3Error(f"cannot write '{path}': no such directory: '{path.parent}'")
        if path.is_dir():
            raise Rt3Error(f"cannot write '{path}': it is a directory: `output` takes the name of a file")
        if path.exists() and not path.is_file():
            raise Rt3Error(f"cannot write '{path}': it is no regular file")
    except OSError as error:  # no right to look, a name that is too long
        raise Rt3Error(f"cannot write '{path}': {error.strerror or error}") from error


@contextmanager
def written_whole(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Give an empty file beside ``path`` to write to, which takes its name when the block ends without an error.

    Raises
    ------
    Rt3Error
        ``path`` is no file that could be replaced: see :func:`check_target`.
    JobError
        It cannot be written.
    """
    check_target(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise JobError(f"cannot write '{path}': {error.strerror or error}") from error


@contextmanager
def written_whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside ``path``, which takes its place when the block ends without an error.

    What the block wrote is on disk before the names change.

    Raises
    ------
    Rt3Error
        ``path`` lies below a file.
    JobError
        It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Rt3Error(f"cannot write '{path}': '{path.parent}' is below a file") from error
    except OSError as error:
        raise JobError(f"cannot write '{path}': {error.strerror or error}") from error
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
        replaced = temporary.with_name(temporary.name + ".old")
        try:
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            temporary.chmod(0o755)
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
        finally:
            shutil.rmtree(replaced, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise JobError(f"cannot write '{path}': {error.strerror or error}") from error


def _sync(path: Path) -> None:
    """Wait until a file is on disk: a new name must not outrun its data."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
