"""A session with one device over TVM's RPC, whose calls all end: with what they give, or with one line."""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tvm.error import RPCError

from rt3_tvm.errors import JobError, Rt3Error, reason
from rt3_tvm.tune import boards
from rt3_tvm.tune.boards import FAILURES, local_board, tracked_boards
from rt3_tvm.tune.measure import BOARD
from rt3_tvm.tune.options import RemoteOptions

FROM_DEVICE = "Error caught from RPC call:"
"""Begins what TVM tells of an error that was raised on the device."""
T = TypeVar("T")


class Remote:
    """A device, and the session with it."""

    def __init__(self, name: str, connect: Callable[[], Any]) -> None:
        self.name = name
        self.session = self.ask(connect, boards.CONNECT_SECONDS)

    def ask(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """Return what a call gives that talks to the device.

        Raises
        ------
        Rt3Error
            The device refuses.
        JobError
            It has vanished, or does not answer in time.
        """
        seconds = boards.BATCH_SECONDS if seconds is None else seconds
        try:
            return within(seconds, call)
        except TimeoutError:
            problem = f"no answer within {seconds:g} s: it has vanished, or works for somebody else"
            raise JobError(f"{self.name}: {problem}") from None
        except RPCError as error:
            _, was_there, said = str(error).partition(FROM_DEVICE)
            if was_there:
                raise Rt3Error(f"{self.name}: {_last_line(said)}") from error
            raise JobError(f"{self.name} has vanished: {reason(error)}") from error
        except FAILURES as error:
            raise JobError(f"{self.name} has vanished: {reason(error)}") from error

    def board(self) -> dict[str, Any]:
        """Return what our server says of its board; nothing where it is not ours."""

        def told() -> dict[str, Any]:
            try:
                function = self.session.get_function(BOARD)
            except AttributeError:
                return {}
            return dict(json.loads(function()))

        return self.ask(told)


def _last_line(text: str) -> str:
    """Return the message of an error: the last line, where a traceback stands above."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it failed and does not say why"


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call gives, or raise TimeoutError; one that does not end in time goes on by itself."""
    ended: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def work() -> None:
        try:
            ended.put((True, call()))
        except BaseException as error:
            ended.put((False, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        well, found = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if well:
        return found  # type: ignore[no-any-return]
    try:
        raise found
    finally:
        del found  # its traceback has this frame: the two, and the session in it, would live until they are collected


@contextmanager
def remote(options: RemoteOptions) -> Iterator[Remote]:
    """Yield a session with a device that has a key at a tracker, or with a server of its own on this machine.

    Raises
    ------
    Rt3Error
        No tracker is there, or no device with the key.
    JobError
        The device gives no session.
    """
    if options.rpc_tracker is not None and options.rpc_key is not None:
        found = tracked_boards(options.rpc_tracker, options.rpc_key)
        yield Remote(f"{options.rpc_key} at {options.rpc_tracker}", found[0].connect)
        return
    with local_board() as here:
        yield Remote("this machine", here[0].connect)
