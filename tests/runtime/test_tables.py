"""What the tables of a bundle must hold: checked when they are made, and again when they are read."""

import ctypes
import struct
from dataclasses import replace

import numpy as np
import pytest

from rt3_tvm import CompileOptions, compile
from rt3_tvm.codegen.tables import Tables
from rt3_tvm.errors import Rt3Error
from rt3_tvm.model import InputSpec, OutputSpec
from rt3_tvm.runtime.check import read_metadata

LIMIT = 500
"""Tokens of the tiny model."""


@pytest.mark.parametrize("pad", [LIMIT, 10_000_000, -1, -64])
def test_padding_outside_of_the_vocabulary_is_refused(tiny_checkpoint, tmp_path, pad):
    config = tiny_checkpoint.description["config"] | {"pad_token_id": pad}
    damaged = replace(tiny_checkpoint, description=tiny_checkpoint.description | {"config": config})
    with pytest.raises(
        Rt3Error, match=rf"padded with {pad}, outside \[0, 500\): correct pad_token_id|Padding_idx must be within"
    ):
        compile(damaged, tmp_path / "m.so", CompileOptions(lengths=(8,)))
    assert not list(tmp_path.iterdir())


def patched(bundle, tmp_path, old: bytes, new: bytes) -> ctypes.CDLL:
    """Return a copy of a bundle in which each ``old`` is ``new``, past all checks of Python's."""
    data = bundle.read_bytes()
    assert old in data and len(old) == len(new)
    path = tmp_path / "patched.so"
    path.write_bytes(data.replace(old, new))
    library = ctypes.CDLL(str(path))
    library.rt3_last_error.restype = ctypes.c_char_p
    return library


def opening(library: ctypes.CDLL) -> tuple[int, str]:
    handle = ctypes.c_void_p()
    return library.rt3_open(ctypes.byref(handle)), library.rt3_last_error().decode()


@pytest.mark.parametrize("fill", [LIMIT, -64, 1 << 40])
def test_rt3_open_refuses_padding_outside_of_the_vocabulary(tiny_bundle, tmp_path, fill):
    library = patched(tiny_bundle, tmp_path, struct.pack("<3q", LIMIT, 0, 0), struct.pack("<3q", LIMIT, 0, fill))
    assert opening(library) == (-5, f"input 'input_ids' is padded with {fill}, outside [0, 500)")


@pytest.mark.parametrize(
    "row",
    [
        (1.4e9, 10.0, 0.9),
        (1.5e9, 10.0, 0.2),
        (np.nan, 10.0, 0.2),
        (-1.0, 10.0, 0.2),
        (1.0e9, np.nan, 0.2),
        (1.0e9, -1.0, 0.2),
        (1.0e9, 10.0, 1e300),
        (1.0e9, 10.0, np.nan),
    ],
)
def test_rt3_open_refuses_levels_that_are_none(tiny_checkpoint, tiny_bundle, tmp_path, row):
    old = (1.0e9, 10.0, tiny_checkpoint.levels[1].density)
    library = patched(tiny_bundle, tmp_path, struct.pack("<3d", *old), struct.pack("<3d", *row))
    status, message = opening(library)
    assert status == -5 and message.startswith("level 1: ") and message.endswith("are no level")


@pytest.mark.parametrize("damage", [{"level": 0}, {"level": 3}, {"level": -1}, {"offset": 0}])
def test_rt3_open_refuses_sections_of_weights_that_are_none(tiny_bundle, tmp_path, damage):
    old = read_metadata(tiny_bundle)["weight_sections"][2]
    new = old | damage
    rows = (struct.pack("<i4xQQ", row["level"], row["offset"], row["bytes"]) for row in (old, new))
    status, message = opening(patched(tiny_bundle, tmp_path, *rows))
    assert status == -5
    assert message.startswith(f"section 2 of the weights: level {new['level']} at {new['offset']}, behind ")


@pytest.mark.parametrize(
    "hz", [(1e9, 1e9, 1e8), (1e9, 2e9, 1e8), (1e9, np.nan, 1e8), (np.inf, 1e9, 1e8), (2e9, 1e9, 0.0)]
)
def test_frequencies_descend(hz):
    with pytest.raises(Rt3Error, match="from the highest to the lowest"):
        CompileOptions(frequencies=hz)


@pytest.mark.parametrize("what", ["inputs", "outputs"])
def test_two_tensors_of_one_name_are_refused(what):
    one = {"inputs": InputSpec("x", 5), "outputs": OutputSpec("x", ("batch",))}
    specs = {"inputs": [], "outputs": []} | {what: [one[what]] * 2}
    with pytest.raises(Rt3Error, match=f"the model has 2 {what} of the name 'x'"):
        Tables([], [], [], **specs, sections=[], batch=1, exact_lengths=False)
