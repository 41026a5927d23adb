"""A server for 64-bit ARM under qemu-user: every family and a whole bundle give there what they give here. Never times."""

import gc
from functools import partial

import arm_rpc
import numpy as np
import pytest
from arm_sysroot import default_folder
from tvm import rpc

from rt3_tvm import CompileOptions, compile, load
from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules import SCHEDULES
from rt3_tvm.tune import boards
from rt3_tvm.tune.remote import RemoteBundle
from rt3_tvm.tune.session import Remote
from tests.arm.test_cross import CASES, compilers
from tests.conftest import TINY_LENGTHS

PYTHON = arm_rpc.python_of(default_folder())
pytestmark = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"no {PYTHON}: python benchmarks/arm_sysroot.py makes it, of 150 MB of downloads"
)
PATIENCE = 300.0
"""Seconds until an emulated server answers at the latest: on a busy machine 20 are too few."""
TOLERANCE = 5e-5
"""Of what verification allows."""


@pytest.fixture(scope="module")
def port():
    compilers("aarch64-linux-gnu", "aarch64-linux-gnu.2.31")
    with arm_rpc.arm_server(PYTHON) as found:
        yield found


@pytest.fixture(autouse=True)
def freed():
    yield
    gc.collect()  # a session that is not freed yet keeps the server from the next test


def test_a_kernel_of_every_family_agrees(port):
    found = list(arm_rpc.run_families(port))
    assert [one.family for one in found] == list(SCHEDULES)
    assert all(one.agrees for one in found), found


def test_a_whole_bundle_agrees(port, tiny_checkpoint, tiny_bundle, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "CONNECT_SECONDS", PATIENCE)
    device, *_ = CASES["aarch64-a76"]
    path = tmp_path / "arm.so"
    options = CompileOptions(device, (1.4e9, 1.0e9, 0.8e9), lengths=TINY_LENGTHS, batch=2, verify=False)
    compile(tiny_checkpoint, path, options)
    remote = Remote("the emulator", partial(rpc.connect, "127.0.0.1", port, arm_rpc.KEY))
    ids = rng.integers(0, 500, (2, 23))
    with load(tiny_bundle) as here:
        there = RemoteBundle(remote, path)
        for level in range(3):
            here.set_level(level)
            there.set_level(level)
            got = there(input_ids=ids)
            for name, want in here(input_ids=ids).items():
                np.testing.assert_allclose(got[name], want, atol=TOLERANCE, rtol=0)
        with pytest.raises(
            Rt3Error, match=r"the emulator: .*cannot open shared object file|wrong ELF|invalid ELF|cannot"
        ):
            RemoteBundle(remote, tiny_bundle)
