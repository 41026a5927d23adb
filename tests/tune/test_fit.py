"""Fitting the model of a core: constants that times were made of are found again, and too few records are one line."""

from dataclasses import replace

import pytest

from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules.cpu import CoreCost, CpuShape
from rt3_tvm.schedules.layout import FLOAT32
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import TokenCount, plan_linear
from rt3_tvm.schedules.tuned import TRIAL, CoreId, LinearTask, Record, plan_to_json
from rt3_tvm.tune.fit import FITTED, fit_log, fit_records
from rt3_tvm.tune.log import Log
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.run import Setting
from rt3_tvm.tune.space import LinearSpace, plan_cycles

CPU = CpuShape(64, 32, 49152)
HZ = 2e9
TRUTH = CoreCost(fma=0.9, load=0.4, broadcast=0.35, offset=0.5, l2_line=1.5, visit=25.0, iteration=2.0)
pytest.importorskip("scipy")


def records(core, cpu):
    made = []
    truth = cpu.with_cost(FLOAT32, replace(TRUTH, held=cpu.cost(FLOAT32).held))
    for matrix in (MatrixShape(384, 384, 96, 1), MatrixShape(384, 1536, 384, 4), MatrixShape.dense_of(384, 384)):
        for tokens in (TokenCount(1, 32), TokenCount(1, 128)):
            task, against = LinearTask(matrix, tokens), plan_to_json(plan_linear(cpu, matrix, tokens))
            for trial in LinearSpace(cpu, matrix, (tokens,)).trials[::9]:
                seconds = plan_cycles(truth, trial.plans[0]) / HZ
                ratio = (seconds / plan_cycles(truth, plan_linear(cpu, matrix, tokens)) * HZ,) * 3
                plan = plan_to_json(trial.plans[0])
                made.append(Record(TRIAL, task, plan, core, seconds, None, ratio, 7, against, {"hz": HZ}))
    return made


def test_the_constants_that_times_are_made_of_are_found():
    (fit,) = fit_records(records(CoreId.of("somecore", CPU), CPU), CPU)
    assert fit.records > 100 and fit.tasks == 6
    assert fit.errors[1] < 0.01 < fit.errors[0]
    assert fit.losses[1] <= fit.losses[0]
    for name in FITTED:
        assert getattr(fit.costs[1], name) == pytest.approx(getattr(TRUTH, name), rel=0.15), name


def test_a_log_is_fitted_for_the_core_of_a_device(tmp_path):
    setting = Setting.of(TuneOptions())
    Log(tmp_path / "core.jsonl").add(records(setting.core, setting.cpu))
    lines = list(fit_log(tmp_path, TuneOptions()))
    assert "records of 6 tasks: median error" in lines[0]
    assert lines[-1].strip().startswith("CoreCost(fma=")


def test_too_few_records_are_one_line(tmp_path):
    setting = Setting.of(TuneOptions())
    Log(tmp_path / "core.jsonl").add(records(setting.core, setting.cpu)[:3])
    with pytest.raises(Rt3Error, match="fewer than 50 records"):
        list(fit_log(tmp_path, TuneOptions()))
