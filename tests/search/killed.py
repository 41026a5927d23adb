"""Runs a command of rt3 again and again, killing it before one change of its files after another, until it ends by itself.

    python -m tests.search.killed FOLDER COMMAND...

What a killed process leaves is what it had written, so a moment matters only by which changes to files came before it. An audit
hook counts those in FOLDER (opened for writing, truncated, renamed, removed, made): the first life ends before the second of
them, each later one before one more, so that every life gets further, and no two die at the same kind of place. Each is a process
of its own, forked before PyTorch has started a thread, that kills itself with SIGKILL. Prints the changes that each killed life
was about to make.
"""

import os
import signal
import sys
from importlib import import_module
from itertools import count
from pathlib import Path

from rt3_tvm.cli.main import main
from rt3_tvm.files import LOCK

MAKES, CHANGES = "os.mkdir", {"os.rename", "os.remove", "os.rmdir", "os.truncate"}


def changed(event: str, arguments: tuple[object, ...]) -> Path | None:
    """Return the file that an audit event is about to change, or None."""
    if event not in {"open", MAKES} | CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
        return None
    path = Path(os.fsdecode(arguments[0]))
    if event == "open":
        flags = arguments[2]
        return path if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) else None
    return path if path.exists() == (event != MAKES) else None  # else it will fail, and change nothing


def die_before(last: int, folder: Path) -> None:
    """Kill this process before its change number ``last`` below a folder."""
    seen = count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        path = changed(event, arguments)
        if path is None or folder not in path.parents or path.name == LOCK:
            return
        if next(seen) == last:
            os.write(1, f"{event} {path.relative_to(folder)}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def lives(folder: Path, command: list[str]) -> int:
    """Return the exit code of the life that nothing killed."""
    for module in ("torch._dynamo", "torch.export", "transformers", "tvm", "rt3_tvm.search"):
        import_module(module)  # once for all lives

    for last in count(2):
        child = os.fork()
        if child == 0:
            die_before(last, folder)
            sys.stdout = sys.stderr
            os._exit(main(command))
        status = os.waitpid(child, 0)[1]
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return os.waitstatus_to_exitcode(status)
    raise AssertionError


if __name__ == "__main__":
    sys.exit(lives(Path(sys.argv[1]).resolve(), sys.argv[2:]))
