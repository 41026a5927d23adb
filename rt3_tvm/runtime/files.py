"""Inputs and outputs of ``rt3 run``."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.files import open_regular, written_whole
from rt3_tvm.timing import Timing


def read_inputs(path: Path, known: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz; no pickle."""
    try:
        with open_regular(path) as source, np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise Rt3Error(f"'{path}' is not an .npz of plain arrays: {error}") from error
    for name in arrays:
        if name not in known:
            raise Rt3Error(f"'{path}': no input '{name}': choose from {choices(known)}")
    return arrays


def write_outputs(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an .npz, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def check_rounds(repeat: int, number: int) -> None:
    """Refuse rounds that time nothing."""
    if repeat < 1 or number < 1:
        raise Rt3Error(f"`repeat` {repeat} and `number` {number} must be at least 1")


def time_table(t: Timing) -> str:
    """Return the table of times that tvmc prints."""
    head = "".join(f"{h:^13}" for h in ("mean (ms)", "median (ms)", "max (ms)", "min (ms)", "std (ms)"))
    row = "".join(f"{v:^13.4f}" for v in (t.mean, t.median, t.high, t.low, t.deviation))
    return f"Execution time summary:\n{head}\n{row}"
