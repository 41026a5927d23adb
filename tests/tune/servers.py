"""A tracker and servers on loopback, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from rt3_tvm.errors import Rt3Error
from rt3_tvm.tune.boards import Board, tracked_boards

KEY = "slow"
PATIENCE = 60.0
"""Seconds that a server has to start, or a job of one board waits for one of the other."""
SERVE = "-m", "rt3_tvm.cli.main", "rpc-server"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen]:
    """Yield a process of this Python that listens, and end it."""
    command = [sys.executable, *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            vanish(process)


def vanish(process: subprocess.Popen) -> None:
    """End a server and its sessions, as a board does whose battery is flat."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def served(tracker: str, count: int) -> list[Board]:
    """Wait until so many servers are at the tracker; return the devices."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            boards = tracked_boards(tracker, KEY)
        except Rt3Error:
            boards = []
        if len(boards) == count:
            return boards
        assert time.monotonic() < end, f"{len(boards)} of {count} servers after {PATIENCE:g} s"
        time.sleep(0.2)


def listening(port: int) -> None:
    """Wait until something listens at a port: a server that comes first tries again 5 s later."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nothing listens after {PATIENCE:g} s"
            time.sleep(0.1)


@contextmanager
def tracked(*servers: tuple[object, ...]) -> Iterator[tuple[str, tuple[subprocess.Popen, ...]]]:
    """Yield the address of a tracker, and the servers at it, each by the words that start it; they get their options behind."""
    port = free_port()
    tracker = f"127.0.0.1:{port}"
    at = "--port", 0, "--tracker", tracker, "--key", KEY, "--with-parent"
    with ExitStack() as stack:
        ports = "--port", port, "--port-end", port + 1
        stack.enter_context(started("-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", *ports, "--silent"))
        listening(port)
        found = tuple(stack.enter_context(started(*words, *at)) for words in servers)
        served(tracker, len(found))
        yield tracker, found
