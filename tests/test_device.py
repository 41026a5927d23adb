"""Devices and frequencies: what is accepted, and what is said of the rest."""

import pytest

from rt3_tvm import device
from rt3_tvm.errors import Rt3Error

GOOD = """
title = "board"
[[cluster]]
name = "cpu"
core = "cortex-a53"
cores = 4
target = { kind = "llvm", mtriple = "aarch64-linux-gnu", mcpu = "cortex-a53" }
lanes = 4
registers = 32
l1d_bytes = 32768
l2_bytes = 524288
opps = [[1400000000, 1.2], [1000000000, 1.0], [800000000, 0.9], [200000000, 0.8]]
"""


@pytest.mark.parametrize(
    ("text", "hz"), [("1.4GHz", 1.4e9), ("800MHz", 8e8), ("1000000000", 1e9), ("1e9", 1e9), (" 600 mhz ", 6e8)]
)
def test_frequencies(text, hz):
    assert device.parse_frequency(text) == hz


@pytest.mark.parametrize("text", ["", "fast", "1.4THz", "-1GHz", "0", "12"])
def test_bad_frequencies(text):
    with pytest.raises(Rt3Error, match=r"give it as 1\.4GHz"):
        device.parse_frequency(text)


@pytest.mark.parametrize(
    ("text", "message"), [("1GHz", "names 1 frequencies, the checkpoint has 2"), ("1GHz,2GHz", "highest to the lowest")]
)
def test_bad_frequency_lists(text, message):
    with pytest.raises(Rt3Error, match=message):
        device.parse_frequencies(text, 2)


def test_defaults_are_top_middle_and_lowest():
    board = device.parse(GOOD, "board.toml", "board")
    assert board.default_frequencies(3) == (1.4e9, 8e8, 2e8)
    assert board.default_frequencies(1) == (1.4e9,)
    with pytest.raises(Rt3Error, match="4 operating points"):
        board.default_frequencies(5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "board"', "title =", "not TOML"),
        ("[[cluster]]", "[other]", r"no \[\[cluster\]\]"),
        ("lanes = 4", "lanes = 0", "'lanes' must be a positive int"),
        ("cores = 4", "", "'cores' must be"),
        ('kind = "llvm"', 'kind = "cuda"', "must be 'llvm'"),
        ("[1000000000, 1.0]", "[1500000000, 1.0]", "descend"),
        ("[1000000000, 1.0]", "[1400000000, 1.0]", "each once"),
        ("1.0]", "900.0]", "not a plausible"),
        ("[1000000000, 1.0]", '["x", 1.0]', r"must be \[Hz, V\]"),
    ],
)
def test_bad_device_files_name_file_and_key(old, new, message):
    with pytest.raises(Rt3Error, match=message) as error:
        device.parse(GOOD.replace(old, new), "board.toml", "board")
    assert "board.toml" in str(error.value)


def test_unknown_devices_and_files():
    with pytest.raises(Rt3Error, match=r"unknown device 'rpi9': choose from host, odroid-xu3"):
        device.load("rpi9")
    with pytest.raises(Rt3Error, match="no such device file"):
        device.load("rpi9.toml")


def test_the_devices_that_come_with_the_package():
    for name in device.names():
        loaded = device.load(name)
        assert loaded.cluster.lanes in (4, 8, 16)
    xu3 = device.load("odroid-xu3")
    assert xu3.cluster.core == "cortex-a7" and xu3.cluster.opps[0].hz == 1.4e9
    assert [o.hz for c in xu3.clusters for o in c.opps if o.hz == 2e9] == [2e9]
