"""Bundles on a device behind a tracker: they give what they give here, tables of their levels are read, bad input is one line."""

import gc
import json
import os
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from rt3_tvm import load
from rt3_tvm.cli.main import main
from rt3_tvm.energy.latency import DENSE_GROUP, TableLatency
from rt3_tvm.energy.loads import read_facts
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.tune import boards as boards_module
from rt3_tvm.tune import clocks, sweep
from rt3_tvm.tune.boards import tracked_boards
from rt3_tvm.tune.clocks import Clocks
from rt3_tvm.tune.options import RemoteOptions
from rt3_tvm.tune.remote import RemoteBundle
from rt3_tvm.tune.session import Remote, remote
from rt3_tvm.tune.sweep import matrix_seconds, parts_of, table_rows
from tests.tune.servers import KEY, PATIENCE, SERVE, served, tracked, vanish

pytest.importorskip("tornado")
MHZ = (1800, 1200, 600)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(sweep, "ROUNDS", 3)
    monkeypatch.setattr(boards_module, "CONNECT_SECONDS", PATIENCE)  # a busy machine starts sessions slowly
    yield
    gc.collect()  # a session that is not freed yet keeps the server from the next test


@pytest.fixture(scope="module")
def tracker():
    with tracked(SERVE) as (address, _):
        yield address


def options(tracker):
    return RemoteOptions(tracker, KEY)


def there(tracker):
    return "--rpc-tracker", tracker, "--rpc-key", KEY


def rt3(*words):
    return main([str(word) for word in words])


def one_line(capsys):
    """Return the one line of an error."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rt3: error: ")
    return line


@pytest.fixture
def inputs(tmp_path, rng):
    path = tmp_path / "in.npz"
    np.savez(path, input_ids=rng.integers(0, 500, (2, 23)))
    return path


def test_a_bundle_gives_there_what_it_gives_here(tiny_bundle, tracker, inputs, tmp_path, capsys):
    for level in range(3):
        for where, name in (((), "here"), (there(tracker), "there")):
            which = "--level", level, "--threads", 1 + level
            assert rt3("run", tiny_bundle, "-i", inputs, "-o", tmp_path / name, *which, *where) == 0
        here, away = (np.load(tmp_path / name) for name in ("here", "there"))
        assert set(here.files) == set(away.files) == {"last_hidden_state", "pooler_output"}
        for name in here.files:
            np.testing.assert_array_equal(here[name], away[name])
    capsys.readouterr()
    low = "--freq", "0.1GHz", "--print-time", "--repeat", 2, "--number", 3
    assert rt3("run", tiny_bundle, "-i", inputs, *low, *there(tracker)) == 0
    said = capsys.readouterr().out
    assert "below the lowest level" in said and "last_hidden_state: float32 (2, 23, 48)" in said and "mean (ms)" in said


def test_left_out_inputs_are_filled_in_there_too(tiny_bundle, tracker, rng):
    ids, mask = rng.integers(0, 500, (1, 9)), np.ones((1, 9), np.int32)
    mask[0, 5:] = 0
    with remote(options(tracker)) as device, load(tiny_bundle) as here:
        away = RemoteBundle(device, tiny_bundle)
        for given in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
            want, got = here(**given), away(**given)
            for name, value in want.items():
                np.testing.assert_array_equal(got[name], value)
        steps = next(v["steps"] for v in away.metadata["variants"] if v["level"] == 0 and v["length"] == 16)
        seconds = away.prepared(input_ids=ids).profile()
        assert len(seconds) == len(steps) and all(s > 0 for s in seconds)


def test_the_table_of_a_sweep_is_what_the_others_take(tiny_bundle, saved_checkpoint, tracker, tmp_path, capsys):
    path = tmp_path / "table.json"
    assert rt3("run", tiny_bundle, "--sweep", path, *there(tracker)) == 0
    said = capsys.readouterr().out
    assert all(f"level {i}" in said for i in range(3)) and "dense" in said
    assert "no frequency is set: the device shows no frequencies" in said or "left out" in said or "at " in said
    table = TableLatency.load(path)
    (hz,) = {row.hz for row in table.table}
    assert table.tokens == 40 and table.threads == 1 and hz > 1e8
    assert {(r.rows, r.cols) for r in table.table} == {(0, 0), (48, 48), (96, 48), (48, 96)}
    for facts in (read_facts(tiny_bundle), read_facts(saved_checkpoint)):
        for level in (*facts.levels, facts.dense):
            assert table.seconds(hz, level.loads) > 0
    sparse = {r.group for r in table.table if r.density < 1.0}
    dense = {r.group for r in table.table if r.density == 1.0}
    assert sparse == {4} and dense == {DENSE_GROUP}


def test_a_sweep_needs_no_tracker(tiny_bundle, tmp_path, capsys):
    bundle = tmp_path / "tiny.so"
    bundle.write_bytes(tiny_bundle.read_bytes())
    assert rt3("run", bundle, "--sweep") == 0
    assert TableLatency.load(tmp_path / "tiny.latency.json").table


def test_bench_model_has_our_own_dense_model_as_the_rival(tiny_bundle, tracker, capsys):
    assert rt3("bench", "model", tiny_bundle, "--seq-len", 16, "--json", *there(tracker)) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["levels"]) == 3 and set(result["rivals"]) == {"dense"} and result["length"] == 16
    assert rt3("bench", "model", tiny_bundle, "--against", "torch", *there(tracker)) == 2
    assert "--against torch: over RPC the rival is our own dense model" in one_line(capsys)


FACTS = {
    "matrices": {
        "shared": {"shape": [64, 32], "levels": [{"density": 0.5, "group": 4}, {"density": 1.0, "group": 4}]},
        "head": {"shape": [2, 64], "levels": [{"density": 1.0, "group": 0}, {"density": 1.0, "group": 0}]},
    },
    "variants": [
        {
            "level": level,
            "length": 8,
            "steps": [[0, "", 0, 0], [1, "shared", 0, 0], [1, "shared", 0, 0], [2, "head", 0, 0]],
        }
        for level in range(2)
    ],
}


def test_the_seconds_of_a_matrix_are_those_of_all_its_steps():
    assert matrix_seconds(FACTS, 0, 8, (1.0, 2.0, 3.0, 4.0)) == [((64, 32, 4, 0.5, "float32"), 5.0)]
    assert matrix_seconds(FACTS, 1, 8, (1.0, 2.0, 3.0, 4.0)) == [((64, 32, DENSE_GROUP, 1.0, "float32"), 5.0)]


def test_the_rows_of_a_table_give_back_what_was_measured():
    """Times made of a part that follows the clock and one that does not are taken apart again."""

    class Level:
        class bundle:
            metadata, max_length = FACTS, 8

        def __init__(self, level):
            self.level = level

    def times(hz, level):
        matrix = (2.0 - level) * 1e9 / hz + 0.25
        return sweep.Times(None, (0.5, matrix / 4, 3 * matrix / 4, 0.5))

    runners = [Level(0), Level(1)]
    found = {hz: [times(hz, level) for level in (0, 1)] for hz in (2e9, 1e9)}
    table = TableLatency("x", 8, 1, tuple(table_rows(runners, found)))
    rows = {(r.group, r.density, r.hz): r for r in table.table if r.rows}
    assert rows[4, 0.5, 2e9].compute_s == pytest.approx(1.0) and rows[4, 0.5, 2e9].memory_s == pytest.approx(0.25)
    assert rows[4, 0.5, 1e9].compute_s == pytest.approx(2.0) and rows[0, 1.0, 1e9].compute_s == pytest.approx(1.0)
    assert [r.seconds_at(r.hz) for r in table.table if not r.rows] == pytest.approx([1.0, 1.0])


def test_of_one_clock_all_follows_it():
    assert parts_of({1e9: 2.0}) == {1e9: (2.0, 0.0)}
    assert parts_of({2e9: 2.0, 1e9: 1.0})[1e9] == (0.0, 1.0), "never less than nothing"


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A tracker, and a server that takes a folder for its board, with three frequencies."""
    root = tmp_path_factory.mktemp("board")
    policy = root / "sys/devices/system/cpu/cpufreq/policy0"
    policy.mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(Path("/proc/cpuinfo").read_text().split("\n\n")[0] + "\n\n")
    (root / "sys/devices/system/cpu/cpu0").mkdir()
    (root / "sys/devices/system/cpu/cpu0/cpufreq").symlink_to(policy)
    (policy / "related_cpus").write_text("0\n")
    (policy / "scaling_available_frequencies").write_text(" ".join(f"{mhz}000" for mhz in MHZ))
    for name, mhz in (("min", MHZ[-1]), ("max", MHZ[0])):
        (policy / f"scaling_{name}_freq").write_text(f"{mhz}000")
    with tracked((Path(__file__).with_name("board.py"), root)) as (address, _):
        yield address, policy


def limits(policy):
    return [int((policy / f"scaling_{name}_freq").read_text()) // 1000 for name in ("min", "max")]


def given_back(policy):
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(ValueError):  # a file that is being written
            if limits(policy) == [MHZ[-1], MHZ[0]]:
                return
        assert time.monotonic() < end, "the limits are not given back"
        time.sleep(0.05)


def test_every_frequency_that_the_device_holds_is_timed(tiny_bundle, board, tmp_path, monkeypatch, capsys):
    """The core of the folder runs at what its limits say."""
    tracker, policy = board
    seen = []

    def runs_at(_self):
        low, high = limits(policy)
        seen.append(low)
        return 1e6 * (high if high != 1200 else 700)  # throttled

    monkeypatch.setattr(Clocks, "hz", property(runs_at))
    path = tmp_path / "table.json"
    assert rt3("run", tiny_bundle, "--sweep", path, *there(tracker)) == 0
    said = capsys.readouterr().out
    assert seen == list(MHZ)
    assert "1.2GHz is left out: held, the core runs at 700MHz" in said
    assert {row.hz for row in TableLatency.load(path).table} == {1.8e9, 6e8}
    given_back(policy)


def test_a_session_that_dies_leaves_the_clock_as_it_was(board):
    tracker, policy = board
    with remote(options(tracker)) as device:
        device.ask(lambda: device.session.get_function(clocks.HOLD)(1.2e9))
        assert limits(policy) == [1200, 1200]
        os.kill(int(device.ask(device.session.get_function("rt3.device_pid"))), signal.SIGKILL)
        given_back(policy)


def test_a_frequency_that_cannot_be_set_is_said(board, tiny_bundle, tmp_path, capsys):
    tracker, policy = board
    path, limit = tmp_path / "table.json", policy / "scaling_min_freq"
    limit.rename(policy / "kept")
    limit.mkdir()
    assert rt3("run", tiny_bundle, "--sweep", path, *there(tracker)) == 0
    limit.rmdir()
    (policy / "kept").rename(limit)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is left out") == 3 and "one clock: at another one" in said
    assert len({row.hz for row in TableLatency.load(path).table}) == 1


def test_bad_input_is_one_line(tiny_bundle, tracker, inputs, tmp_path, capsys):
    cases = [
        (("run", tiny_bundle), "give inputs, -i NPZ, or --sweep"),
        (("run", tiny_bundle, "--sweep", "-i", inputs), "draws its own inputs"),
        (("run", tiny_bundle, "--sweep", tmp_path), "it is a directory"),
        (("run", tiny_bundle, "-i", inputs, "--rpc-tracker", tracker), "--rpc-tracker and --rpc-key need each other"),
        (
            ("run", tiny_bundle, "-i", inputs, "--rpc-tracker", "127.0.0.1:1", "--rpc-key", KEY),
            "--rpc-tracker 127.0.0.1:1: no tracker answers there",
        ),
        (
            ("run", tiny_bundle, "-i", inputs, "--rpc-tracker", tracker, "--rpc-key", "fast"),
            f"--rpc-key fast: no device with it at {tracker}: keys there: {KEY}",
        ),
        (("run", tmp_path / "no.so", "-i", inputs, *there(tracker)), "no such bundle"),
        (("run", tiny_bundle, "-i", inputs, "--level", 3, *there(tracker)), "level 3: choose 0 to 2"),
        (("run", tiny_bundle, "-i", inputs, "--threads", 99, *there(tracker)), "threads"),
        (("bench", "model", tiny_bundle, "--seq-len", 99, *there(tracker)), "--seq-len 99: this bundle takes 1 to 40"),
    ]
    for words, message in cases:
        assert rt3(*words) == 2, words
        assert message in one_line(capsys)


def test_values_that_the_model_does_not_take_are_one_line(tiny_bundle, tracker, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", input_ids=np.full((1, 4), 500))
    assert rt3("run", tiny_bundle, "-i", tmp_path / "in.npz", *there(tracker)) == 2
    assert "input 'input_ids': value 500 at position 0 is outside [0, 500)" in one_line(capsys)


def test_a_bundle_for_another_machine_is_one_line(tiny_bundle, tracker, monkeypatch):
    monkeypatch.setattr(Remote, "board", lambda _: {"machine": "aarch64"})
    with remote(options(tracker)) as device, pytest.raises(Rt3Error, match="is aarch64: compile it for that device"):
        RemoteBundle(device, tiny_bundle)


def test_a_bundle_of_a_device_that_is_unknown_here_is_one_line(tiny_bundle, tmp_path, monkeypatch):
    facts = sweep.read_metadata(tiny_bundle)
    for changed, message in (
        ({"device": "mine"}, "'mine'.*can be measured beside a dense level of its own"),
        ({"target": {"kind": "llvm", "mcpu": "i386"}}, "device 'host' of .* is another one here"),
    ):
        monkeypatch.setattr(sweep, "read_metadata", lambda _, new=changed: facts | new)
        with pytest.raises(Rt3Error, match=message):
            sweep.compile_dense(tiny_bundle, tmp_path / "dense.so", RemoteOptions())


def test_a_device_that_hangs_and_one_that_vanishes_are_one_line(tiny_bundle, rng, monkeypatch):
    ids = rng.integers(0, 500, (1, 9))

    def opened():
        device = stack.enter_context(remote(options(tracker)))
        bundle = RemoteBundle(device, tiny_bundle)
        bundle(input_ids=ids)
        return bundle, int(device.ask(device.session.get_function("rt3.device_pid")))

    with tracked(SERVE) as (tracker, (server,)), ExitStack() as stack:
        bundle, session = opened()
        os.kill(session, signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr(boards_module, "BATCH_SECONDS", 1.0)
            impatient.setattr(boards_module, "CONNECT_SECONDS", 1.0)
            with pytest.raises(JobError, match=f"{KEY} at {tracker}: no answer within 1 s"):
                bundle(input_ids=ids)
            with pytest.raises(JobError, match="no answer within 1 s: it has vanished, or works for somebody else"):
                opened()
        os.kill(session, signal.SIGKILL)
        monkeypatch.setattr(boards_module, "CONNECT_SECONDS", PATIENCE)
        served(tracker, 1)  # it registers anew
        bundle, _ = opened()
        vanish(server)
        with pytest.raises(JobError, match=f"{KEY} at {tracker} has vanished"):
            bundle(input_ids=ids)
        with pytest.raises(Rt3Error, match="no device with it"):
            gone(tracker)


def gone(tracker):
    """Ask for a device until the tracker has seen that there is none."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        tracked_boards(tracker, KEY)
        time.sleep(0.1)
