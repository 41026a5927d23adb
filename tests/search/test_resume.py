"""A search that goes on: killed, ended, with other options, from a phase on, by other workers."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import psutil
import pytest
import torch

from rt3_tvm import search
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.files import held
from rt3_tvm.search import folder_of
from rt3_tvm.search.journal import Journal
from rt3_tvm.search.training import Trainer
from rt3_tvm.search.workers import RayWorkers
from rt3_tvm.tasks.language_model import LanguageModelData
from tests.search.small import COMMAND, MODEL, OPTIONS, without_times


def test_one_folder_has_one_search(found):
    path, result = found
    with held(folder_of(path)), pytest.raises(Rt3Error, match=r"lm\.ckpt\.search' is in use by another process: wait"):
        search(MODEL, OPTIONS, path, restart="dense")
    assert search(MODEL, OPTIONS, path).checkpoint.digest == result.checkpoint.digest


def test_an_ended_search_is_not_done_again(found, monkeypatch):
    path, result = found
    before = (folder_of(path) / "journal.jsonl").read_bytes()
    monkeypatch.setattr(Trainer, "epoch", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(LanguageModelData, "evaluate", lambda *_: pytest.fail("evaluated again"))
    again = search(MODEL, OPTIONS, path)
    assert again.checkpoint.digest == result.checkpoint.digest
    assert (folder_of(path) / "journal.jsonl").read_bytes() == before


def before_joint(path):
    """Return when the state of each phase before joint training was written."""
    return {p.name: p.stat().st_mtime_ns for p in folder_of(path).glob("*.safetensors") if p.stem != "joint"}


def test_a_phase_is_done_again_with_what_came_before(found, tmp_path):
    path, _ = found
    again = tmp_path / "again.ckpt"
    shutil.copytree(folder_of(path), folder_of(again))
    before = Journal.read(folder_of(again) / "journal.jsonl")
    kept = before_joint(again)
    longer = replace(OPTIONS, epochs=(*OPTIONS.epochs[:3], OPTIONS.epochs[3] + 1))
    with pytest.raises(Rt3Error, match=r"epochs was \[.*restart joint to do phase joint again"):
        search(MODEL, longer, again)
    result = search(MODEL, longer, again, restart="joint")
    assert len(result.figures["phases"]["joint"]["loss"]) == OPTIONS.epochs[3] + 1
    assert before_joint(again) == kept
    after = Journal.read(folder_of(again) / "journal.jsonl")
    assert after.of("child") == before.of("child") and after.of("episode") == before.of("episode")
    assert after.config["epochs"] == list(longer.epochs)
    fewer = replace(longer, children=3)
    with pytest.raises(Rt3Error, match=r"^restart joint: children was 6, is 3: that takes restart search"):
        search(MODEL, fewer, again, restart="joint")
    assert search(MODEL, fewer, again, restart="search").figures["children"]["episodes"] == 3
    assert kept == before_joint(again)


def test_another_configuration_is_refused_and_restart_begins_anew(found):
    path, result = found
    with pytest.raises(Rt3Error, match=r"another configuration: seed was 0, is 1: .*restart"):
        search(MODEL, replace(OPTIONS, seed=1), path)
    other = path.with_name("other.ckpt")
    options = replace(OPTIONS, search="none", epochs=(0, 0, 0, 0))
    first = search(MODEL, options, other)
    again = search(MODEL, replace(options, seed=1), other, restart="dense")
    assert first.checkpoint.digest != result.checkpoint.digest
    assert json.loads((folder_of(other) / "journal.jsonl").read_text().splitlines()[0])["seed"] == 1
    assert len(again.checkpoint.levels) == 3


@pytest.mark.slow
def test_killed_at_any_moment_it_comes_to_the_same(found, tmp_path):
    """Killed again and again, see tests/search/killed.py; every life goes on from what is on disk."""
    path, result = found
    output = tmp_path / "killed.ckpt"
    command = [sys.executable, "-m", "tests.search.killed", str(tmp_path), *COMMAND, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    about_to = [said.split()[0] for said in done.stdout.splitlines()]
    assert len(about_to) >= 6 and {"open", "os.rename", "os.remove"} <= set(about_to), done.stdout
    assert Checkpoint.load(output).digest == result.checkpoint.digest
    journals = [Journal.read(folder_of(p) / "journal.jsonl") for p in (path, output)]
    assert without_times(journals[0]) == without_times(journals[1])
    assert not list(folder_of(output).glob("*.partial*"))


def listeners():
    """Return address and port of every socket that listens on this machine."""
    return [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]


@pytest.mark.slow
def test_ray_comes_to_the_same(found, tmp_path, monkeypatch):
    if find_spec("ray") is None:  # importing it here would be too early: see LOOPBACK_VARIABLE
        pytest.skip("Ray is not installed: pip install 'rt3-tvm[ray]'")
    path, result = found
    before, listening = set(listeners()), set()
    train = RayWorkers.train
    monkeypatch.setattr(RayWorkers, "train", lambda *a: listening.update(set(listeners()) - before) or train(*a))
    other = search(MODEL, OPTIONS, tmp_path / "ray.ckpt", workers="ray")
    assert listening
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} <= {"127.0.0.1", "::1"}, "it listens beyond loopback"
    assert other.checkpoint.digest == result.checkpoint.digest
    journals = [Journal.read(folder_of(p) / "journal.jsonl") for p in (path, tmp_path / "ray.ckpt")]
    assert without_times(journals[0]) == without_times(journals[1])


def test_a_diverging_loss_keeps_the_last_good_state(tmp_path, monkeypatch):
    loss, calls = LanguageModelData.loss, iter(range(1000))
    monkeypatch.setattr(LanguageModelData, "loss", lambda *a: loss(*a) * (float("inf") if next(calls) > 100 else 1.0))
    options, path = replace(OPTIONS, search="none", epochs=(1, 0, 0, 4), pruned_rate=1.0), tmp_path / "a.ckpt"
    with pytest.raises(
        JobError, match=r"joint: the loss diverged .*: lower pruned_rate \(now 1\) and give restart blocks"
    ):
        search(MODEL, options, path)
    from safetensors.torch import load_file

    kept = load_file(folder_of(path) / "joint.partial.safetensors")
    numbers = [v for v in kept.values() if v.is_floating_point()]
    assert numbers and all(torch.isfinite(v).all() for v in numbers)
    monkeypatch.setattr(LanguageModelData, "loss", loss)
    dense = (folder_of(path) / "dense.safetensors").stat().st_mtime_ns
    with pytest.raises(Rt3Error, match=r"pruned_rate was 1.0, is 0.001: .*or restart blocks to do phase blocks and"):
        search(MODEL, replace(options, pruned_rate=1e-3), path)
    with pytest.raises(Rt3Error, match=r"^restart joint: pruned_rate was .*: that takes restart blocks, "):
        search(MODEL, replace(options, pruned_rate=1e-3), path, restart="joint")
    found = search(MODEL, replace(options, pruned_rate=1e-3), path, restart="blocks")
    assert len(found.checkpoint.levels) == options.levels
    assert (folder_of(path) / "dense.safetensors").stat().st_mtime_ns == dense
