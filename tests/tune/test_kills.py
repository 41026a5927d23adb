"""A run that is killed at any moment: the log loads, no record that was finished is lost, and the run goes on."""

import multiprocessing
import os
import random
import sys

import pytest

from rt3_tvm.schedules.tuned import FINAL, TRIAL
from rt3_tvm.schedules.tuning_log import read_log
from rt3_tvm.tune.run import BATCH_PLANS
from tests.tune.killed import TASK, TRIALS, tune_pretending

KILLS = 20
LONGEST = 0.15
"""Seconds behind the first record that a run has, at most, before it is killed."""
pytest.importorskip("xgboost")


@pytest.fixture
def forks(monkeypatch):
    """Processes that need not import everything anew."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tune.killed"])
    return context


def test_killed_at_twenty_moments(forks, tmp_path):
    moments, kept, killed = random.Random(0), [], 0
    while killed < KILLS:
        ours, theirs = forks.Pipe()
        process = forks.Process(target=tune_pretending, args=(tmp_path, theirs))
        process.start()
        theirs.close()
        safe = ours.recv()
        process.join(moments.uniform(0.0, LONGEST))
        assert process.exitcode is None, "it ended before it was killed"
        process.kill()
        process.join()
        killed += 1
        safe = max([safe, *_rest(ours)])
        records, _ = read_log(next(tmp_path.glob("*.jsonl")))
        assert len(records) >= safe > len(kept)
        assert records[: len(kept)] == kept
        kept = records
    _finish(forks, tmp_path)
    records, _ = read_log(next(tmp_path.glob("*.jsonl")))
    assert records[: len(kept)] == kept
    for part in TASK.parts:
        mine = [r for r in records if r.task == part]
        tried = [r.text for r in mine if r.stage == TRIAL and r.plan != r.against]
        assert len(set(tried)) >= TRIALS
        assert len(tried) - len(set(tried)) <= KILLS * BATCH_PLANS  # a batch that one number of tokens had not come to
        assert any(r.stage == FINAL for r in mine)


def _rest(told):
    """Yield what was told before the end."""
    try:
        while True:
            yield told.recv()
    except EOFError:
        return


def _finish(forks, folder):
    ours, theirs = forks.Pipe()
    process = forks.Process(target=tune_pretending, args=(folder, theirs))
    process.start()
    theirs.close()
    assert list(_rest(ours))
    process.join()
    assert process.exitcode == 0
