"""Runs a PrimFunc as a bundle would: scheduled, with a C signature, linked, called on pointers."""

import ctypes
import tempfile
from pathlib import Path

import numpy as np
from tvm import tirx

from rt3_tvm import device
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.link import choose_compiler, run_compiler
from rt3_tvm.schedules import KERNEL_ATTR, SCHEDULES
from rt3_tvm.schedules.cpu import CpuShape

CLUSTER = device.load("host").cluster
CPU = CpuShape.of(CLUSTER)


def schedule(family: str, func: tirx.PrimFunc) -> tirx.PrimFunc:
    return SCHEDULES[family].schedule(func.with_attr(KERNEL_ATTR, family), CPU).with_attr(KERNEL_ATTR, family)


def run_kernel(family: str, func: tirx.PrimFunc, *arrays: np.ndarray) -> None:
    """Schedule, compile and run a kernel on arrays; its outputs are the last of them."""
    table = KernelTable()
    table.index(schedule(family, func))
    target = CLUSTER.target_dict()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table.compile(target, folder / "kernel.o")
        arch = str(target["mtriple"]).split("-", 1)[0]
        run_compiler(choose_compiler(arch, None, arch), ["-shared", "-o", "kernel.so", "kernel.o"], folder)
        function = getattr(ctypes.CDLL(str(folder / "kernel.so")), table.kernels[0].symbol)
        assert all(a.flags.c_contiguous for a in arrays)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
        tasks = table.kernels[0].tasks
        middle = tasks // 2  # in two parts, as two threads would
        for first, last in ((middle, tasks), (0, middle)):
            function(*pointers, ctypes.c_int32(first), ctypes.c_int32(last))


def to_tiles(x: np.ndarray) -> np.ndarray:
    """Return (batch, length, features) in the feature-major layout, padded with zeros."""
    batch, length, features = x.shape
    tiles = -(-length // 16)
    padded = np.zeros((batch, tiles * 16, features), np.float32)
    padded[:, :length] = x
    return np.ascontiguousarray(padded.reshape(batch * tiles, 16, features).transpose(0, 2, 1))


def from_tiles(y: np.ndarray, batch: int, length: int) -> np.ndarray:
    return y.transpose(0, 2, 1).reshape(batch, -1, y.shape[1])[:, :length]
