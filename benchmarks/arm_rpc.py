"""A server for 64-bit ARM under qemu-user: ``python benchmarks/arm_rpc.py [FOLDER]`` runs a kernel of every family on it.

The kernels are built here for a Cortex-A76, one library for all, uploaded over TVM's RPC, run there on the example of the
family's row of ``SCHEDULES``, and compared with its reference in NumPy. How long an emulator takes is no time: nothing of it
is kept. ``FOLDER`` is what ``benchmarks/arm_sysroot.py`` made.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import arm
import numpy as np
import tvm
from arm_sysroot import default_folder
from tvm import rpc

from rt3_tvm.bench.kernel import outputs_of
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.schedules import SCHEDULES, kernel, scheduled
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.examples import SMALL, Example
from rt3_tvm.tune.build import Toolchain, link

CORE, KEY = "A76", "arm"
SERVER = """
import logging, os, socket, sys, threading
from tvm.rpc import server
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(1)
port = listener.getsockname()[1]
print(port, flush=True)
logging.getLogger("RPCServer").setLevel(logging.WARNING)
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
server._listen_loop(listener, port, sys.argv[1], None, None, None)
"""
"""TVM's own, without the process that it starts around this loop: that would import TVM once more."""


def python_of(folder: Path) -> Path:
    """Return the command that is the Python of a sysroot, which may not be there."""
    return folder / "python-arm"


@contextmanager
def arm_server(python: Path) -> Iterator[int]:
    """Yield the port of TVM's server in a Python for ARM."""
    command = [python, "-c", SERVER, KEY]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            sys.exit("the server did not start: is the sysroot whole? python benchmarks/arm_sysroot.py")
        try:
            yield int(line)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # a session in the emulator does not end by itself


@dataclass(frozen=True)
class FamilyError:
    """How far at most a family is from its reference on the server."""

    family: str
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether it computes its reference there."""
        return self.largest <= SCHEDULES[self.family].tolerance


def run_families(port: int) -> Iterator[FamilyError]:
    """Yield what a kernel of every family gives on a server."""
    cluster = arm.cluster_of(CORE)
    cpu = CpuShape.of(cluster)
    examples = {family: row.example(cpu, SMALL) for family, row in SCHEDULES.items()}
    table, functions = KernelTable(), {f: kernel(f, *example.arguments) for f, example in examples.items()}
    indices = {family: table.index(scheduled(func, cpu)) for family, func in functions.items()}
    entries = [(family, [table.kernels[i]]) for family, i in indices.items()]
    image = link(table, entries, Toolchain.of(cpu, cluster.target_dict(), None, 1))
    session = rpc.connect("127.0.0.1", port, KEY)
    name = f"{uuid4().hex}.so"
    session.upload(bytearray(image), name)
    module = session.load_module(name)
    for family, example in examples.items():
        outputs = outputs_of(functions[family], len(example.inputs))
        yield FamilyError(family, _largest(family, example, _ran(session, module, family, example, outputs)))


def _ran(session: Any, module: Any, family: str, example: Example, outputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a kernel on the server."""
    tensors = [tvm.runtime.tensor(array, session.cpu(0)) for array in (*example.inputs, *outputs)]
    module[f"seconds_{family}"](*tensors, 1)
    return [tensor.numpy() for tensor in tensors[len(example.inputs) :]]


def _largest(family: str, example: Example, outputs: list[np.ndarray]) -> float:
    """Return the largest difference from the reference; what is no number differs by any."""
    wanted = SCHEDULES[family].reference(*example.arguments, *example.inputs)
    differences = [np.abs(got.astype(np.float64) - want) for got, want in zip(outputs, wanted, strict=True)]
    return float(max(np.nan_to_num(d, nan=np.inf).max() for d in differences))


def main() -> None:
    """Run them and say what they give."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="default %(default)s")
    python = python_of(parser.parse_args().folder)
    if not python.is_file():
        sys.exit(f"no {python}: make it with python benchmarks/arm_sysroot.py")
    found = []
    with arm_server(python) as port:
        for one in run_families(port):
            found.append(one)
            print(f"{one.family:22s} {'agrees' if one.agrees else 'DIFFERS'}, by {one.largest:.1e} at most", flush=True)
    sys.exit(0 if all(one.agrees for one in found) else 1)


if __name__ == "__main__":
    main()
