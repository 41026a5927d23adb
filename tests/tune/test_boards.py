"""Two servers under a tracker: both work at once, what one leaves the other does; and what goes wrong is one line."""

import threading
from contextlib import nullcontext

import pytest

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import TokenCount
from rt3_tvm.schedules.tuned import FINAL, TRIAL
from rt3_tvm.schedules.tuning_log import read_log
from rt3_tvm.tune import boards as boards_module
from rt3_tvm.tune.boards import tracked_boards
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.run import Setting, tune_tasks
from rt3_tvm.tune.tasks import MatrixTask
from tests.tune.servers import KEY, PATIENCE, SERVE, served, tracked, vanish

TRIALS = 24
TASKS = [MatrixTask(MatrixShape(64, 96, kept, 4), (TokenCount(1, 16), TokenCount(1, 64))) for kept in (32, 48)]
pytest.importorskip("xgboost")
pytest.importorskip("tornado")


@pytest.fixture
def servers():
    """The tracker, and two servers at it."""
    with tracked(SERVE, SERVE) as found:
        yield found


def tuned(tracker, folder, say=lambda _: None):
    options = TuneOptions(trials=TRIALS, rpc_tracker=tracker, rpc_key=KEY)
    boards = nullcontext(served(tracker, 2))
    return tune_tasks(TASKS, options, Setting.of(options), boards, folder, say)


def trials(report):
    """Return the records of trials, that of the untuned plan left out."""
    return [r for r in read_log(report.log)[0] if r.stage == TRIAL and r.plan != r.against]


def test_two_slow_servers_work_at_once(servers, tmp_path, monkeypatch):
    """A job of one goes on only when the other has one too: so every pair of jobs was done in the time of one."""
    tracker, _ = servers
    meeting, real, met = threading.Barrier(2), boards_module.measure, []

    def slow(*arguments):
        try:
            meeting.wait(PATIENCE if not met or len(met) < TRIALS // 8 else 0.5)
            met.append(1)
        except threading.BrokenBarrierError:
            meeting.reset()
        return real(*arguments)

    monkeypatch.setattr(boards_module, "measure", slow)
    report = tuned(tracker, tmp_path)
    found = trials(report)
    by_board = {name: sum(r.device["board"] == name for r in found) for name in {r.device["board"] for r in found}}
    assert set(by_board) == {f"{KEY} 0", f"{KEY} 1"}
    assert min(by_board.values()) >= 0.3 * len(found)
    assert len(met) >= TRIALS // 8
    assert not report.failed
    for task in TASKS:
        for part in task.parts:
            assert len({r.text for r in found if r.task == part}) >= TRIALS
            assert any(r.stage == FINAL for r in read_log(report.log)[0] if r.task == part)


def test_what_a_server_leaves_the_other_does(servers, tmp_path, monkeypatch):
    tracker, (one, _) = servers
    monkeypatch.setattr(boards_module, "CONNECT_SECONDS", 5.0)
    said = []

    def say(line):
        said.append(line)
        if "tried" in line:
            vanish(one)

    report = tuned(tracker, tmp_path, say)
    assert any("is dropped" in line for line in said)
    for task in TASKS:
        for part in task.parts:
            assert len({r.text for r in trials(report) if r.task == part}) >= TRIALS


def test_no_server_left_is_one_line(servers, tmp_path, monkeypatch):
    tracker, both = servers
    monkeypatch.setattr(boards_module, "CONNECT_SECONDS", 5.0)

    def say(line):
        if "tried" in line:
            for server in both:
                vanish(server)

    with pytest.raises(JobError, match=r"no device is left: .*; what was measured is in the log"):
        tuned(tracker, tmp_path, say)
    assert read_log(next(tmp_path.glob("*.jsonl")))[0]


def test_a_key_that_nobody_serves_is_one_line(servers):
    tracker, _ = servers
    with pytest.raises(Rt3Error, match=rf"rpc_key`? fast: no device with it at {tracker}: keys there: {KEY}"):
        tracked_boards(tracker, "fast")
