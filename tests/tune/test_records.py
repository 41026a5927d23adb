"""Records of plans: read back, merged, cut off, of other versions; and which plans they speak for."""

import json
from dataclasses import replace

import pytest

from rt3_tvm import device as devices
from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FLOAT16, FLOAT32, INT8, REAL
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import MEASURED, TUNED, TokenCount, plan_linear
from rt3_tvm.schedules.tuned import (
    FINAL,
    TRIAL,
    CoreId,
    LinearTask,
    Record,
    choose_plans,
    plan_of_json,
    plan_text,
    plan_to_json,
)
from rt3_tvm.schedules.tuning_log import TuningLogs, read_log
from rt3_tvm.tune.log import Log, line_of, merge
from rt3_tvm.tune.space import LinearSpace

CPU = CpuShape(64, 32, 49152)
A76 = CpuShape.of(devices.load("raspberrypi5").cluster)
CORE = CoreId.of("somecore", CPU)
MATRIX = MatrixShape(384, 384, 96, 4)
TOKENS = (TokenCount(1, 32), TokenCount(1, 128))
SPACE = LinearSpace(CPU, MATRIX, TOKENS).trials
DEFAULT = tuple(plan_linear(CPU, MATRIX, t) for t in TOKENS)
THIRD = SPACE[-1]
OTHER = next(trial for trial in SPACE if trial.packing != DEFAULT[0].packing)


def record(i: int, plan, ratio, stage=FINAL, rounds=25) -> Record:
    task = LinearTask(MATRIX, TOKENS[i])
    against = plan_to_json(DEFAULT[i])
    return Record(stage, task, plan_to_json(plan), CORE, 1e-4, (9e-5, 2e-4), ratio, rounds, against, {"name": "board"})


def chosen(records, tokens=TOKENS, threads=1):
    return choose_plans(records, CORE, CPU, {(MATRIX, REAL): tokens}, threads)


EQUAL, FASTER, SLOWER, NOISE = (1.0, 1.0, 1.0), (0.8, 0.82, 0.85), (1.05, 1.1, 1.2), (0.9, 0.98, 1.03)
DEFAULTS = [record(i, plan, EQUAL) for i, plan in enumerate(DEFAULT)]


@pytest.mark.parametrize("element", [FLOAT32, FLOAT16, INT8], ids=lambda element: element.dtype)
def test_every_plan_of_a_space_is_read_back(element):
    few = (TokenCount(1, 5), *TOKENS)
    space = LinearSpace(A76, MATRIX, few, element).trials
    suffix = "_int8" if element is INT8 else ""
    families = {f"{family}{suffix}" for family in ("few_token_linear", "pattern_linear")}
    assert {trial.plans[0].family for trial in space} >= families
    assert len({plan_text(plan_to_json(trial.plans[-1])) for trial in space}) > 5
    for trial in space[:: max(1, len(space) // 20)]:
        for plan, tokens in zip(trial.plans, few, strict=True):
            read = plan_of_json(json.loads(json.dumps(plan_to_json(plan))), LinearTask(MATRIX, tokens, element))
            assert read == plan and plan.element is element


def test_a_record_is_read_back():
    one = record(0, OTHER.plans[0], FASTER)
    assert Record.of(json.loads(line_of(one))) == one


def test_a_gain_at_all_lengths_is_taken():
    plans = chosen([*DEFAULTS, *(record(i, OTHER.plans[i], FASTER) for i in range(2))])
    assert [plans[MATRIX, t, REAL] for t in TOKENS] == list(OTHER.plans)
    assert {plan.source for plan in plans.values()} == {TUNED}


@pytest.mark.parametrize("second", [SLOWER, None])
def test_a_packing_that_loses_or_is_unknown_at_a_length_is_not(second):
    records = [*DEFAULTS, record(0, OTHER.plans[0], FASTER)]
    records += [record(1, OTHER.plans[1], second)] if second else []
    plans = chosen(records)
    assert [plans[MATRIX, t, REAL] for t in TOKENS] == list(DEFAULT)
    assert {plan.source for plan in plans.values()} == {MEASURED}


def test_noise_is_no_gain():
    plans = chosen([*DEFAULTS, *(record(i, OTHER.plans[i], NOISE) for i in range(2))])
    assert [plans[MATRIX, t, REAL] for t in TOKENS] == list(DEFAULT)


def test_what_might_be_much_slower_is_not_taken():
    doubtful = (0.7, 0.99, 1.1)
    plans = chosen([*DEFAULTS, record(0, OTHER.plans[0], FASTER), record(1, OTHER.plans[1], doubtful)])
    assert [plans[MATRIX, t, REAL] for t in TOKENS] == list(DEFAULT)


def test_what_does_not_hold_is_left_out():
    taken = [record(i, OTHER.plans[i], FASTER) for i in range(2)]
    assert chosen(taken)
    assert not chosen([replace(r, stage=TRIAL) for r in taken])
    assert not chosen([replace(r, versions={"tvm": "0.1", "kernels": 1}) for r in taken])
    assert not chosen([replace(r, core=replace(CORE, core="another")) for r in taken])
    assert not chosen(taken, threads=2)
    assert not chosen([replace(r, against=plan_to_json(THIRD.plans[i])) for i, r in enumerate(taken)])


def test_a_packing_that_was_not_measured_at_all_lengths_of_the_compilation_is_not_taken():
    taken = [record(i, OTHER.plans[i], FASTER) for i in range(2)]
    assert not chosen(taken, (*TOKENS, TokenCount(1, 512)))


def test_a_line_that_was_cut_off_is_dropped_and_the_log_goes_on(tmp_path):
    log = Log(tmp_path / "core.jsonl")
    log.add(DEFAULTS)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + line_of(DEFAULTS[0])[:40].encode())
    again = Log(log.path)
    assert again.records == DEFAULTS
    again.add([record(0, OTHER.plans[0], FASTER)])
    assert len(read_log(log.path)[0]) == 3


def test_merged_logs_have_each_record_once(tmp_path):
    for name, records in (("a", DEFAULTS), ("b", [*DEFAULTS, record(0, OTHER.plans[0], FASTER)])):
        Log(tmp_path / f"{name}.jsonl").add(records)
    assert merge([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "c.jsonl") == 3
    assert len(read_log(tmp_path / "c.jsonl")[0]) == 3


def test_bad_logs_are_one_line(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(Rt3Error, match="no such file"):
        TuningLogs.of(CORE, path)
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(Rt3Error, match=r"x\.jsonl:1: no record of rt3 tune"):
        TuningLogs.of(CORE, path)
    path.write_text(line_of(DEFAULTS[0]), encoding="utf-8")
    with pytest.raises(Rt3Error, match=r"no record of another .* records of somecore"):
        TuningLogs.of(CoreId("another", 64, 32), path)
    old = replace(DEFAULTS[0], versions={"tvm": "0.1", "kernels": 1})
    path.write_text(line_of(old), encoding="utf-8")
    logs = TuningLogs.of(CORE, path)
    assert not logs.records and "ignored 1 records of other versions: kernels 1, TVM 0.1" in logs.ignored[0]
