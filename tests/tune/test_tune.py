"""Tuning on this machine: the log, what the compiler makes of it, going on, a kernel that crashes, a run that is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import rt3_tvm
from rt3_tvm.bench.kernel import host
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.runtime.check import read_metadata
from rt3_tvm.schedules.int8_plan import quantised_for
from rt3_tvm.schedules.layout import INT8
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import TokenCount
from rt3_tvm.schedules.tuned import FINAL, TRIAL, CoreId, choose_plans
from rt3_tvm.schedules.tuning_log import read_log
from rt3_tvm.tune import boards as boards_module
from rt3_tvm.tune.boards import local_board, tracked_boards
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.run import Setting, tune, tune_tasks
from rt3_tvm.tune.tasks import MatrixTask, tasks_of

LENGTHS = (16, 40)
pytest.importorskip("xgboost")


def options(**more) -> TuneOptions:
    return TuneOptions(lengths=LENGTHS, **{"trials": 6, "tasks": (0,)} | more)


@pytest.fixture(scope="module")
def log(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    return tune(tiny_checkpoint, options(), folder).log


def test_a_log_has_the_untuned_plan_the_trials_and_a_decision(log):
    records, _ = read_log(log)
    for tokens in {r.task.tokens for r in records}:
        mine = [r for r in records if r.task.tokens == tokens]
        assert any(r.plan == r.against and r.stage == TRIAL for r in mine)
        assert any(r.plan == r.against and r.stage == FINAL for r in mine)
        assert len({r.text for r in mine if r.plan != r.against}) >= 6
    assert all(r.seconds > 0 and r.device["hz"] > 1e8 and not r.error for r in records)


@pytest.mark.skipif(INT8 not in host().elements, reason="kernels of this machine do not multiply int8")
def test_plans_of_int8_are_measured_and_chosen(tmp_path):
    tokens = TokenCount(1, 16), TokenCount(1, 80)
    task = MatrixTask(MatrixShape(64, 96, 32, 4), tokens, element=INT8)
    report = tune_tasks([task], options(), Setting.of(options()), local_board(), tmp_path)
    assert not report.failed
    records, _ = read_log(report.log)
    assert {r.plan["family"] for r in records if r.stage == FINAL} == {"pattern_linear_int8"}
    assert {r.task.tokens for r in records} == set(tokens) and all(r.seconds > 0 for r in records)
    core = CoreId.of(Setting.of(options()).device.cluster.core, host())
    plans = choose_plans(records, core, host(), {(task.matrix, INT8): tokens}, 1)
    assert set(plans) <= {(task.matrix, t, INT8) for t in tokens}
    assert all(plan.quantised == quantised_for(host()) for plan in plans.values())


def test_the_compiler_takes_it_and_the_bundle_is_verified(tiny_checkpoint, log, tmp_path):
    compile_options = rt3_tvm.CompileOptions(lengths=LENGTHS, tuning_log=log)
    report = rt3_tvm.compile(tiny_checkpoint, tmp_path / "tuned.so", compile_options)
    facts = read_metadata(tmp_path / "tuned.so")
    assert {k.get("plan", "modelled") for k in facts["kernels"]} & {"tuned", "measured"}
    assert "skipped" not in facts["verified"] and "linear kernels" in report.tuning[-1]


def test_without_a_record_the_bytes_are_the_same(tiny_checkpoint, log, tmp_path):
    """Records that do not hold change nothing."""
    stale = tmp_path / "stale.jsonl"
    lines = [json.loads(line) | {"versions": {"tvm": "0.1", "kernels": 0}} for line in log.read_text().splitlines()]
    stale.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    images = []
    for path in (None, stale):
        compile_options = rt3_tvm.CompileOptions(lengths=LENGTHS, tuning_log=path, cache=False)
        rt3_tvm.compile(tiny_checkpoint, tmp_path / "same.so", compile_options)
        images.append((tmp_path / "same.so").read_bytes())
    assert images[0] == images[1]


def test_what_is_in_the_log_is_not_tried_again(tiny_checkpoint, log):
    before = log.read_bytes()
    assert tune(tiny_checkpoint, options(), log.parent).plans == 0
    assert log.read_bytes() == before


def test_a_kernel_that_crashes_is_counted_and_the_rest_goes_on(tiny_checkpoint, tmp_path, monkeypatch):
    real = boards_module.measure

    def crashing(session, library, chosen, *rest):
        if any(library.entries[k] == "plan2" for k in chosen[1:]):
            os.kill(int(session.get_function("rt3.device_pid")()), signal.SIGSEGV)
        return real(session, library, chosen, *rest)

    monkeypatch.setattr(boards_module, "measure", crashing)
    report = tune(tiny_checkpoint, options(), tmp_path)
    records, _ = read_log(report.log)
    assert report.failed and any(r.error for r in records)
    assert any(r.stage == TRIAL and r.ratio and r.plan != r.against for r in records)


def test_a_run_that_is_killed_loses_nothing(saved_checkpoint, tmp_path):
    command = [
        sys.executable,
        "-m",
        "rt3_tvm.cli.main",
        "tune",
        str(saved_checkpoint),
        "--seq-len",
        "16",
        "--trials",
        "400",
    ]
    command += ["--tasks", "0", "-o", str(tmp_path)]
    moments, kept = random.Random(0), []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            while "tried" not in run.stdout.readline():
                assert run.poll() is None
            time.sleep(moments.uniform(0.0, 1.0))
            run.kill()
        (path,) = tmp_path.glob("*.jsonl")
        records = read_log(path)[0]
        assert records[: len(kept)] == kept and len(records) > len(kept)
        kept = records


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"trials": 0}, "`?trials`? 0 must be at least 1"),
        ({"budget": 0.0}, "must be positive"),
        ({"rpc_tracker": "127.0.0.1:1"}, "need each other"),
        ({"threads": 0}, "give 1 to"),
        ({"shares": (0.5, 0.2, 0.2)}, r"shares`? 50,20,20 %: give one for each level"),
        ({"shares": (1.5, -0.5, 0.0)}, r"shares`? 150,-50,0 %"),
    ],
)
def test_bad_options_are_one_line(bad, message):
    with pytest.raises(Rt3Error, match=message):
        TuneOptions(**bad)


def test_no_tracker_is_one_line():
    with pytest.raises(Rt3Error, match=r"127\.0\.0\.1:1: no tracker answers there"):
        tracked_boards("127.0.0.1:1", "phone")


def test_a_task_that_there_is_not_is_one_line(tiny_checkpoint, tmp_path):
    with pytest.raises(Rt3Error, match=r"tasks.* 99: there are"):
        tune(tiny_checkpoint, options(tasks=(99,)), tmp_path)


def test_shares_of_other_levels_are_one_line(tiny_checkpoint):
    with pytest.raises(Rt3Error, match=r"shares`? 75,25 %: give one for each of the 3 levels"):
        tasks_of(tiny_checkpoint, options(shares=(0.75, 0.25)), Setting.of(options()).device)


def test_another_device_is_not_measured_here(tiny_checkpoint, tmp_path):
    with pytest.raises(Rt3Error, match="rpc_tracker"):
        tune(tiny_checkpoint, replace(options(), device="raspberrypi5", cross_compiler="cc"), tmp_path)


def test_the_local_server_ends_with_its_client():
    with local_board() as boards:
        assert boards[0].connect().get_function("rt3.device_state")()
    assert Setting.of(TuneOptions()).core.registers in (16, 32)


def test_a_budget_shorter_than_one_trial_is_one_line(tiny_checkpoint, tmp_path):
    with pytest.raises(JobError, match=r"budget`? 0\.001 s ended before one plan was measured"):
        tune(tiny_checkpoint, options(budget=0.001), tmp_path)


def test_a_short_budget_goes_on_with_what_was_measured_before(tiny_checkpoint, log, tmp_path):
    folder = shutil.copytree(log.parent, tmp_path / "log")
    report = tune(tiny_checkpoint, options(budget=1e-9, trials=12), folder)
    assert report.out_of_time and all(result.tried >= 6 for result in report.results)
