"""The devices that plans are measured on: this machine, by a server of its own, or those at a tracker.

Each is worked on by a thread. A device that does not come back is dropped, its job is done elsewhere, and the rest goes on.
"""

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tvm import rpc
from tvm.error import RPCError

from rt3_tvm.errors import JobError, Rt3Error, choices, reason
from rt3_tvm.tune.build import Library
from rt3_tvm.tune.measure import Batch, Pace, measure
from rt3_tvm.tune.server import address

LOCAL_KEY = "rt3-tune"
CONNECT_SECONDS = 20.0
"""A device that gives no session in this time has vanished."""
BATCH_SECONDS = 120.0
"""A batch that takes longer than this, and what its calls take by the first of them, hangs."""
FAILURES = (RPCError, RuntimeError, OSError, ValueError, AttributeError)


@dataclass(frozen=True)
class Job:
    """Plans of a library to be timed; the first is what the others are compared with."""

    name: Any
    library: Library
    chosen: tuple[int, ...]
    columns: int
    step: int
    pace: Pace
    failures: int = 0

    def halves(self) -> "list[Job]":
        """Return the job as two, each with the plan to compare with."""
        first, others = self.chosen[0], self.chosen[1:]
        middle = len(others) // 2
        return [replace(self, chosen=(first, *part), failures=0) for part in (others[:middle], others[middle:])]


@dataclass(frozen=True)
class Done:
    """What became of a job: times, or why there are none."""

    job: Job
    board: str
    batch: Batch | None = None
    error: str = ""


class Connector(Protocol):
    """How sessions are had."""

    def __call__(self) -> Any:
        """Return a new session; an error of ``FAILURES`` where none is to be had."""


@dataclass(eq=False)
class Board:
    """One device: its name, how it is reached, and since when it is at what it does."""

    name: str
    connect: Connector
    session: Any = None
    since: float = field(default_factory=time.monotonic)
    job: Job | None = None
    lost: bool = False

    def work(self, jobs: "queue.Queue[Job]", results: "queue.Queue[Done | Board]") -> None:
        """Do jobs until the device is lost."""
        while not self.lost:
            job = jobs.get()
            self.job, self.since = job, time.monotonic()
            if not self._connected():
                jobs.put(job)
                results.put(self)
                return
            self.since = time.monotonic()
            try:
                done = Done(
                    job, self.name, measure(self.session, job.library, job.chosen, job.columns, job.step, job.pace)
                )
            except FAILURES as error:
                self.session = None
                done = Done(job, self.name, error=reason(error))
            self.job = None
            if not self.lost:  # else it was given to another
                results.put(done)

    def _connected(self) -> bool:
        try:
            self.session = self.session or self.connect()
        except FAILURES:
            return False
        return True

    @property
    def hangs(self) -> bool:
        """Whether it is at its job for longer than any takes."""
        limit = BATCH_SECONDS if self.session is not None else CONNECT_SECONDS
        return self.job is not None and time.monotonic() - self.since > limit


class Boards:
    """Some devices, and the jobs that they share."""

    def __init__(self, boards: Sequence[Board], say: Callable[[str], None]) -> None:
        self.jobs: queue.Queue[Job] = queue.Queue()
        self._results: queue.Queue[Done | Board] = queue.Queue()
        self._say = say
        self.alive = list(boards)
        for board in boards:
            threading.Thread(target=board.work, args=(self.jobs, self._results), daemon=True).start()

    def next(self, seconds: float) -> Done | None:
        """Return a job that was done or failed, None when none was within some seconds.

        Raises
        ------
        JobError
            No device is left.
        """
        try:
            found = self._results.get(timeout=seconds)
        except queue.Empty:
            for board in [b for b in self.alive if b.hangs]:
                job = board.job
                self._drop(board, "it does not answer")
                if job is not None:
                    self.jobs.put(job)
            return None
        if isinstance(found, Board):
            self._drop(found, "it gives no session any more")
            return None
        return found

    def put(self, job: Job) -> None:
        """Let whichever device is free first do a job."""
        self.jobs.put(job)

    def _drop(self, board: Board, why: str) -> None:
        board.lost = True
        self.alive = [b for b in self.alive if b is not board]
        if not self.alive:
            raise JobError(f"no device is left: {board.name}: {why}; what was measured is in the log")
        self._say(f"{board.name} is dropped, {why}; {len(self.alive)} go on")


@contextmanager
def local_board() -> Iterator[list[Board]]:
    """Yield this machine: a server on loopback, so that a kernel that crashes ends its session and nothing else."""
    command = [
        sys.executable,
        "-m",
        "rt3_tvm.cli.main",
        "rpc-server",
        "--port",
        "0",
        "--key",
        LOCAL_KEY,
        "--with-parent",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise JobError("the server that measures on this machine did not start: see rt3 rpc-server")
            port = int(line.split(",", 1)[0].rpartition(":")[2])
            yield [Board("this machine", lambda: rpc.connect("127.0.0.1", port, LOCAL_KEY))]
        finally:
            server.kill()


def tracked_boards(tracker: str, key: str) -> list[Board]:
    """Return the devices with a key at a tracker.

    Raises
    ------
    Rt3Error
        No tracker is there, or no device with the key.
    """
    host, port = address(tracker, "rpc_tracker")
    found = served_keys(host, port)
    count = found.count(key)
    if not count:
        known = choices(set(found)) or "none"
        raise Rt3Error(f"`rpc_key` {key}: no device with it at {tracker}: keys there: {known}: see rt3 rpc-server")
    return [Board(f"{key} {i}", lambda: _request(host, port, key)) for i in range(count)]


def _request(host: str, port: int, key: str) -> Any:
    return rpc.connect_tracker(host, port).request(key, max_retry=1)


def served_keys(host: str, port: int) -> list[str]:
    """Return the key of each device at a tracker."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()  # TVM would try for a minute
        tracker = rpc.connect_tracker(host, port)
        servers = tracker.summary()["server_info"]
        tracker.close()
    except (OSError, RuntimeError, KeyError) as error:
        raise Rt3Error(
            f"`rpc_tracker` {host}:{port}: no tracker answers there: {reason(error)}: start TVM's, "
            "python -m tvm.exec.rpc_tracker, on its loopback"
        ) from error
    return [
        str(server["key"]).removeprefix("server:") for server in servers if str(server["key"]).startswith("server:")
    ]
