"""``rt3 rpc-server``: TVM's RPC server on a board, on one cluster and, where permitted, at one frequency.

TVM's own server ends when a session does with an error, as one does whose kernel crashes; ours reports it and goes on.
"""

import json
import logging
import os
import platform
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rt3_tvm.bench.clock import kept, pinned
from rt3_tvm.device import frequency_name
from rt3_tvm.device.machine import cluster_cpus, probe
from rt3_tvm.errors import JobError, Rt3Error, choices
from rt3_tvm.tune.measure import BOARD, HOLD, PID, STATE
from rt3_tvm.tune.options import ServerOptions

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    options: ServerOptions, say: Callable[[str], None], warn: Callable[[str], None], root: Path = Path("/")
) -> None:
    """Serve until this process is ended; what is known of the board is read below ``root``."""
    if options.host not in LOOPBACK:
        warn(
            f"listening at {options.host}: TVM's RPC has no authentication, whoever reaches this port runs code here; "
            "listen at 127.0.0.1 and use an SSH tunnel (docs/tuning.md)"
        )
    with ExitStack() as stack:
        state = stack.enter_context(_prepared(options, warn, root))
        listener = stack.enter_context(_listener(options.host, options.port))
        _register(state, root)
        port = listener.getsockname()[1]
        said = f"cluster {state['cluster']} (CPUs {','.join(map(str, state['cpus']))})"
        held = f", held at {frequency_name(state['held_hz'])}" if state["held_hz"] else ", frequency not held"
        say(f"listening at {options.host}:{port}, key '{options.key}', {said}{held}")
        _serve(listener, port, options, warn, partial(kept, root, _policy(state)))


@contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise JobError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
        listener.listen(1)
        yield listener


def _serve(
    listener: socket.socket,
    port: int,
    options: ServerOptions,
    warn: Callable[[str], None],
    around: Callable[[], AbstractContextManager[None]],
) -> None:
    """Serve session after session, each in a process of its own; what one does to the clock ends with it, however it ends."""
    from tvm.rpc import server

    serving = server._serving

    def serving_kept(*arguments: Any) -> None:
        with around():
            serving(*arguments)

    server._serving = serving_kept
    logging.getLogger("RPCServer").setLevel(logging.WARNING)
    tracker = address(options.tracker, "tracker") if options.tracker else None
    home = Path.cwd()
    while True:
        try:
            server._listen_loop(listener, port, options.key, tracker, None, None)
        except RuntimeError as error:
            if "exited unsuccessfully" not in str(error):
                raise JobError(str(error)) from error
            os.chdir(home)  # a session that ends with an error leaves its own folder to us
            warn(f"a session crashed: {str(error).rpartition(' with ')[2]}; serving goes on")


@contextmanager
def _prepared(options: ServerOptions, warn: Callable[[str], None], root: Path) -> Iterator[dict[str, Any]]:
    """Pin this process to the cluster, hold the frequency where that is permitted, and yield what is known of the device."""
    found = probe(root, "board").device
    cpus = cluster_cpus(root)
    name = _cluster(options.cluster, {c.name: c.opps[0].hz if c.opps else 0.0 for c in found.clusters})
    os.sched_setaffinity(0, cpus[name])
    state = {"cluster": name, "cpus": cpus[name], "core": found.with_cluster(name).cluster.core, "held_hz": 0.0}
    with ExitStack() as stack:
        if options.frequency is not None:
            try:
                stack.enter_context(pinned(options.frequency, root, _policy(state)))
                state["held_hz"] = options.frequency
            except (Rt3Error, JobError) as error:
                warn(f"the frequency is not held: {error}")
        yield state


def _policy(state: dict[str, Any]) -> str:
    """Return cpufreq's name for the cluster."""
    return f"policy{state['cpus'][0]}"


def _machine() -> str:
    """Return what this process runs code for: ``arm`` also for one of 32 bits on a machine of 64."""
    machine = platform.machine()
    return "arm" if machine.startswith(("arm", "aarch64")) and sys.maxsize < 1 << 32 else machine


def _cluster(wanted: str | None, clusters: dict[str, float]) -> str:
    """Return the name of a cluster; ``big`` and ``LITTLE`` are those with the highest and the lowest clock."""
    if wanted is None or wanted.lower() == "big":
        return max(clusters, key=lambda name: clusters[name])
    if wanted.lower() == "little":
        return min(clusters, key=lambda name: clusters[name])
    if wanted not in clusters:
        raise Rt3Error(f"`cluster` {wanted}: no such cluster here: choose from big, LITTLE, {choices(clusters)}")
    return wanted


def _register(state: dict[str, Any], root: Path) -> None:
    """Let sessions ask for the state of the device, and for a frequency."""
    import tvm_ffi

    def told() -> str:
        return json.dumps(state | {"celsius": celsius(root)})

    def board() -> str:
        cluster = probe(root, "board").device.with_cluster(state["cluster"]).cluster
        return json.dumps(state | {"machine": _machine(), "frequencies": [opp.hz for opp in cluster.opps]})

    stack = ExitStack()

    def hold(hz: float) -> None:
        stack.close()
        stack.enter_context(pinned(hz, root, _policy(state)))

    tvm_ffi.register_global_func(STATE, told, override=True)
    tvm_ffi.register_global_func(BOARD, board, override=True)
    tvm_ffi.register_global_func(PID, os.getpid, override=True)
    tvm_ffi.register_global_func(HOLD, hold, override=True)


def celsius(root: Path) -> float | None:
    """Return the temperature of the warmest zone; None where none is shown."""
    found = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        try:
            found.append(int(zone.read_text(encoding="utf-8")) / 1000)
        except (OSError, ValueError):
            continue
    return max(found, default=None)


def address(text: str, name: str) -> tuple[str, int]:
    """Return host and port of a text."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise Rt3Error(f"`{name}` {text}: give HOST:PORT")
    return host.strip("[]"), int(port)


def end_with_parent() -> None:
    """End this process when whoever started it closes its standard input, however that one ends."""

    def wait() -> None:
        while os.read(0, 1):  # not by sys.stdin: a session is forked, and closes it, which waits for its lock
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
