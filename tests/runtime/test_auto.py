"""`auto` on a clock that a file tells: it comes back to where it was, and to levels that are no whole kHz."""

import os
from itertools import product

import numpy as np
import pytest

from rt3_tvm import load
from tests.runtime.test_c_api import ROOT, build, run

IDS = np.zeros((1, 4), np.int64)


@pytest.fixture
def set_clock(tmp_path):
    file = tmp_path / "devices/system/cpu/cpufreq/policy0/scaling_cur_freq"
    file.parent.mkdir(parents=True)
    return lambda khz: file.write_text(f"{khz}\n")


def test_auto_comes_back_to_the_level_whose_frequency_the_clock_has(tiny_bundle, tmp_path, set_clock):
    clocks = {0: 1_400_000, 1: 1_000_000, 2: 800_000}
    with load(tiny_bundle) as bundle:
        for first, second in product(clocks, clocks):
            set_clock(clocks[first])
            bundle.set_auto(tmp_path, dwell_s=1e-9, poll_s=1e-9)
            for level in (first, second, first):
                set_clock(clocks[level])
                bundle(input_ids=IDS)
                assert bundle.level == level, (first, second)


@pytest.mark.parametrize("text", ["", "\n", "fast\n", "0\n", "-1\n"])
def test_auto_keeps_its_level_where_the_clock_is_no_number(tiny_bundle, tmp_path, set_clock, text):
    with load(tiny_bundle) as bundle:
        set_clock(1_000_000)
        bundle.set_auto(tmp_path, dwell_s=1e-9, poll_s=1e-9)
        (tmp_path / "devices/system/cpu/cpufreq/policy0/scaling_cur_freq").write_text(text)
        bundle(input_ids=IDS)
        assert bundle.level == 1


def test_a_level_set_by_hand_is_kept(sanitized, tmp_path, set_clock, gxx):
    bundle, flag = sanitized
    set_clock(0)
    clock = tmp_path / "devices/system/cpu/cpufreq/policy0/scaling_cur_freq"
    clock.unlink()
    os.mkfifo(clock)
    build(ROOT / "tests/runtime/by_hand.cpp", bundle, tmp_path / "by_hand", gxx, flag)
    assert "lost 0" in run(tmp_path / "by_hand", tmp_path)
