"""Runs a PrimFunc as a bundle would: scheduled, with a C signature, linked, called on pointers."""

import tempfile
from pathlib import Path

import numpy as np
from tvm import tirx

from rt3_tvm import device
from rt3_tvm.bench.kernel import Kernels, pointers_to
from rt3_tvm.schedules import KERNEL_ATTR
from rt3_tvm.schedules.cpu import CpuShape

CLUSTER = device.load("host").cluster
CPU = CpuShape.of(CLUSTER)


def run_kernel(family: str, func: tirx.PrimFunc, *arrays: np.ndarray) -> None:
    """Schedule, compile and run a kernel on arrays, its tasks in two parts as two threads would; outputs are the last."""
    with tempfile.TemporaryDirectory() as name:
        Kernels([func.with_attr(KERNEL_ATTR, family)], CPU, Path(name)).in_halves(pointers_to(arrays))


def to_tiles(x: np.ndarray) -> np.ndarray:
    """Return (batch, length, features) in the feature-major layout, padded with zeros."""
    batch, length, features = x.shape
    tiles = -(-length // 16)
    padded = np.zeros((batch, tiles * 16, features), np.float32)
    padded[:, :length] = x
    return np.ascontiguousarray(padded.reshape(batch * tiles, 16, features).transpose(0, 2, 1))


def from_tiles(y: np.ndarray, batch: int, length: int) -> np.ndarray:
    return y.transpose(0, 2, 1).reshape(batch, -1, y.shape[1])[:, :length]
