"""Kernels of this machine by themselves: compiled and linked as in a bundle, called on arrays."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tvm import tirx

from rt3_tvm import device as devices
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.link import choose_compiler, run_compiler
from rt3_tvm.schedules import scheduled
from rt3_tvm.schedules.cpu import CpuShape

CACHE_LINE = 64


def host() -> CpuShape:
    """Return the shape of this machine's cores."""
    return CpuShape.of(devices.load("host").cluster)


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins on a cache line, as everything in a bundle does; NumPy promises only 16 bytes."""
    raw = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def outputs_of(func: tirx.PrimFunc, inputs: int) -> list[np.ndarray]:
    """Return an array of NaN, or of zeros where there is none, for each parameter behind the inputs."""
    types = [buffer.ty for buffer in func.params[inputs:]]
    arrays = [aligned(np.zeros([int(d) for d in ty.shape], str(ty.dtype))) for ty in types]
    for array in arrays:
        if array.dtype.kind == "f":
            array.fill(np.nan)
    return arrays


class Kernels:
    """Some kernels, called one after the other on the same arrays."""

    def __init__(self, functions: Sequence[tirx.PrimFunc], cpu: CpuShape, folder: Path) -> None:
        """Schedule, compile and link kernels that name their families; ``folder`` is where the library stays."""
        table, target = KernelTable(), devices.load("host").cluster.target_dict()
        for func in functions:
            table.index(scheduled(func, cpu))
        table.compile(target, folder / "kernel.o")
        triple = str(target["mtriple"])
        compiler = choose_compiler(triple, None, triple.split("-", 1)[0])
        run_compiler(compiler, ["-shared", "-o", "kernel.so", "kernel.o"], folder)
        library = ctypes.CDLL(str(folder / "kernel.so"))
        self._functions = [(getattr(library, k.symbol), ctypes.c_int32(k.tasks)) for k in table.kernels]
        self._first = ctypes.c_int32(0)

    def __call__(self, pointers: Sequence[ctypes.c_void_p]) -> None:
        """Run on pointers to arrays, as one thread does."""
        for function, tasks in self._functions:
            function(*pointers, self._first, tasks)

    def in_halves(self, pointers: Sequence[ctypes.c_void_p]) -> None:
        """Run each kernel as two threads would, the second half of its tasks first."""
        for function, tasks in self._functions:
            middle = ctypes.c_int32(tasks.value // 2)
            function(*pointers, middle, tasks)
            function(*pointers, self._first, middle)


def pointers_to(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Return what a kernel takes; the arrays must outlive it."""
    assert all(a.flags.c_contiguous for a in arrays)
    return [ctypes.c_void_p(a.ctypes.data) for a in arrays]
