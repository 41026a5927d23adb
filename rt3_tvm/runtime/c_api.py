"""``rt3.h`` for ctypes: its structures, its statuses, and a bundle's library with its functions declared."""

import ctypes
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.runtime.check import WrongMachine

MAX_RANK = 4
AXIS_BATCH, AXIS_LENGTH = -1, -2
BELOW_RANGE = 1
DTYPES = (np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64))


ERRORS: dict[int, type[Exception]] = {-1: Rt3Error, -5: Rt3Error, -6: WrongMachine}
"""What a status of the C API is raised as; others are failed jobs."""


class Tensor(ctypes.Structure):
    """``rt3_tensor``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
    )


class TensorInfo(ctypes.Structure):
    """``rt3_tensor_info``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("axes", ctypes.c_int64 * MAX_RANK),
        ("limit", ctypes.c_int64),
        ("optional", ctypes.c_int32),
    )


class CLevelInfo(ctypes.Structure):
    """``rt3_level_info``."""

    _fields_ = (("frequency_hz", ctypes.c_double), ("deadline_s", ctypes.c_double), ("density", ctypes.c_double))


class AutoOptions(ctypes.Structure):
    """``rt3_auto_options``."""

    _fields_ = (
        ("sysfs_root", ctypes.c_char_p),
        ("policy", ctypes.c_int32),
        ("dwell_s", ctypes.c_double),
        ("poll_s", ctypes.c_double),
        ("hysteresis", ctypes.c_double),
    )


def load_library(file: BinaryIO, path: Path) -> ctypes.CDLL:
    """Load a library from an open file, so that it is the one that was checked, under a name that no other load ever has.

    The loader takes a name that it knows for the library it had under it, whatever the file is now; under a new name it goes by
    the file itself (its inode). Descriptors are used again, so the name also has 64 random bits: the number of slashes between
    components that stand for nothing.
    """
    bits = f"{secrets.randbits(64):064b}"
    unique = "".join("./" if bit == "0" else ".//" for bit in bits)
    try:
        library = ctypes.CDLL(f"/proc/self/fd/{unique}{file.fileno()}", mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        reason = str(error).replace(unique, "")
        raise Rt3Error(f"'{path}' cannot be loaded: {reason}") from error
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the signatures of rt3.h."""
    handle = ctypes.c_void_p
    library.rt3_last_error.restype = library.rt3_metadata.restype = ctypes.c_char_p
    library.rt3_max_batch.restype = library.rt3_max_length.restype = ctypes.c_int64
    library.rt3_close.restype = None
    run: list[Any] = [handle, ctypes.POINTER(Tensor), ctypes.c_int32, ctypes.POINTER(Tensor), ctypes.c_int32]
    signatures: dict[str, list[Any]] = {
        "rt3_open": [ctypes.POINTER(handle)],
        "rt3_close": [handle],
        "rt3_level": [handle, ctypes.c_int32, ctypes.POINTER(CLevelInfo)],
        "rt3_set_level": [handle, ctypes.c_int32],
        "rt3_set_threads": [handle, ctypes.c_int32],
        "rt3_set_frequency": [handle, ctypes.c_double],
        "rt3_set_auto": [handle, ctypes.POINTER(AutoOptions)],
        "rt3_input": [handle, ctypes.c_int32, ctypes.POINTER(TensorInfo)],
        "rt3_output": [handle, ctypes.c_int32, ctypes.POINTER(TensorInfo)],
        "rt3_run": run,
        "rt3_profile": [*run, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_int32)],
    }
    counts = (
        "level_count",
        "current_level",
        "input_count",
        "output_count",
        "max_batch",
        "max_length",
        "threads",
        "max_threads",
    )
    signatures |= {f"rt3_{name}": [handle] for name in counts}
    for name, arguments in signatures.items():
        getattr(library, name).argtypes = arguments


def check(library: ctypes.CDLL, status: int) -> int:
    """Return a status that is no error, or raise what the library says of it."""
    if status < 0:
        raise ERRORS.get(status, JobError)(library.rt3_last_error().decode())
    return status


def tensors_of(arrays: Mapping[str, np.ndarray]) -> Any:
    """Return the C tensors of arrays; the arrays own the memory."""
    tensors = (Tensor * max(1, len(arrays)))()
    for tensor, (name, array) in zip(tensors, arrays.items(), strict=False):
        tensor.name, tensor.dtype, tensor.rank = name.encode(), DTYPES.index(array.dtype), array.ndim
        tensor.shape[: array.ndim] = array.shape
        tensor.data, tensor.bytes = array.ctypes.data, array.nbytes
    return tensors
