"""``rt3 search`` from end to end: what it writes, by whatever options."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rt3_tvm import CompileOptions, compile, load, search
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.errors import JobError
from rt3_tvm.search import ControllerOptions, RewardOptions, folder_of
from rt3_tvm.search import episodes as episodes_module
from rt3_tvm.search.children import ChildTrainer
from rt3_tvm.search.journal import Journal
from rt3_tvm.tasks import load_task
from rt3_tvm.tasks.language_model import LanguageModelData
from tests.search.small import MODEL, OPTIONS, rows


def by_hand(model, data, split):
    right = count = 0
    with torch.no_grad():
        for ids in data.splits[split]:
            logits = model(input_ids=ids[None, :-1])["logits"][0]
            right += int((logits.argmax(-1) == ids[1:]).sum())
            count += 35
    return right / count


def test_accuracies_are_those_of_the_masked_model(found):
    path, result = found
    checkpoint = Checkpoint.load(path)
    _, data = load_task("lm", None, MODEL)
    for i, (level, row) in enumerate(zip(checkpoint.levels, result.figures["levels"], strict=True)):
        expected = by_hand(checkpoint.torch_model(i), data, "test")
        assert row["test"]["accuracy"] == pytest.approx(expected, abs=2e-4)
        assert level.accuracy == row["test"]["accuracy"]
        assert level.density == pytest.approx(row["density"])
    assert checkpoint.facts["dense_accuracy"] == result.figures["dense"]["test"]["accuracy"]


def test_levels_are_in_time_within_the_backbone_and_ever_sparser(found):
    path, result = found
    levels = Checkpoint.load(path).levels
    assert [lv.frequency_hz for lv in levels] == [1.4e9, 1.0e9, 0.8e9]
    densities = [lv.density for lv in levels]
    assert densities == sorted(densities, reverse=True) and len(set(densities)) == 3
    assert all(row["latency_ms"] <= 24.0 for row in result.figures["levels"])
    for name, matrix in levels[0].matrices.items():
        backbone = matrix.backbone.mask()
        assert abs(backbone.mean() - 0.7) < 0.02, name
        assert not any((lv.matrices[name].mask() & ~backbone).any() for lv in levels)


def test_the_journal_has_every_child(found):
    path, result = found
    journal = Journal.read(folder_of(path) / "journal.jsonl")
    episodes, children = journal.of("episode"), journal.of("child")
    assert [e["number"] for e in episodes] == list(range(6))
    assert {c["child"] for c in children} == {e["child"] for e in episodes if e["accuracy"]}
    assert all("seconds" in c and len(c["accuracy"]) == 3 and c["seed"] == 0 for c in children)
    for e in episodes:
        late = any(ms > 24.0 for ms in e["latency_ms"])
        assert (e["accuracy"] is None) == late
        if late:
            assert e["reward"] < 0
    size, shrunk = (result.figures["space"][k] for k in ("size", "shrunk"))
    assert 0 < shrunk < size


def test_the_dispatcher_gets_what_was_found(found, tmp_path):
    path, _ = found
    checkpoint = Checkpoint.load(path)
    bundle = tmp_path / "lm.so"
    compile(checkpoint, bundle, CompileOptions(lengths=(35,)))
    ids = np.arange(35)[None] + 5
    with load(bundle) as m:
        assert [lv.frequency_hz for lv in m.levels] == [1.4e9, 1.0e9, 0.8e9]
        for i in range(3):
            m.set_level(i)
            with torch.no_grad():
                expected = checkpoint.torch_model(i)(input_ids=torch.from_numpy(ids))["logits"].numpy()
            assert np.abs(m(input_ids=ids)["logits"] - expected).max() < 2e-4


def test_the_test_split_is_read_at_the_end_alone(tmp_path, monkeypatch):
    read = []
    evaluate, batches = LanguageModelData.evaluate, LanguageModelData.batches
    monkeypatch.setattr(LanguageModelData, "evaluate", lambda s, f, split: read.append(split) or evaluate(s, f, split))
    monkeypatch.setattr(LanguageModelData, "batches", lambda s, split, *g: read.append(split) or batches(s, split, *g))
    search(MODEL, replace(OPTIONS, children=2, episode_batch=2), tmp_path / "a.ckpt")
    first = read.index("test")
    assert read[:first].count("valid") > 4
    assert "train" not in read[first:]
    assert read.count("test") == 2 * 4  # dense and three levels, evaluate and its batches


def test_children_that_are_late_are_not_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(episodes_module.Episodes, "_misses", lambda *_: True)
    monkeypatch.setattr(ChildTrainer, "__call__", lambda *_: pytest.fail("trained"))
    with pytest.raises(JobError, match=r"none of 6 children met the deadline"):
        search(MODEL, OPTIONS, tmp_path / "a.ckpt")
    episodes = rows(tmp_path / "a.ckpt", "episode")
    assert len(episodes) == 6
    assert all(e["accuracy"] is None and e["reward"] < 0 for e in episodes)


def test_children_that_all_diverge_are_said_to(tmp_path, monkeypatch):
    monkeypatch.setattr(ChildTrainer, "__call__", lambda *_: {"failed": "the loss diverged", "seconds": 0.1})
    with pytest.raises(JobError, match=r"none of 6 children could be trained; the last: the loss diverged: lower pru"):
        search(MODEL, OPTIONS, tmp_path / "a.ckpt")


VARIANTS = {
    "random, no energy": {
        "search": "random",
        "reward": RewardOptions(runs_weight=0.0),
        "device": "raspberrypi4",
        "power": None,
        "deadline_s": 0.03,
    },
    "evolution": {"search": "evolution"},
    "none by deadline": {"search": "none", "block_sparsity": None},
    "none by sparsity": {"search": "none", "sparsity": (0.4, 0.6, 0.8), "deadline_s": 0.0, "alone": True},
    "search at given sparsities": {"sparsity": (0.6, 0.7, 0.8), "deadline_s": 0.0},
    "gradual blocks": {"block": "gradual", "epochs": (0, 2, 0, 1)},
    "one-shot, magnitude": {"block": "one-shot", "pattern": "magnitude", "block_sparsity_of": (("decoder*", 0.5),)},
    "random blocks and patterns": {"block": "random", "pattern": "random", "search": "none"},
    "at once, whole gradients, rows grouped": {
        "gradual": False,
        "masked_gradients": False,
        "group_rows": True,
        "groups": (4,),
        "search": "none",
    },
    "bfloat16, labels alone": {"precision": "bfloat16", "distillation": 0.0, "search": "none"},
    "two levels by a small controller": {
        "frequencies": (1.4e9, 0.8e9),
        "level_weights": (0.6, 0.4),
        "reward": RewardOptions(shares=(0.6, 0.4)),
        "controller": ControllerOptions(hidden=8, entropy=0.1),
    },
}


def largest_divisor(rows, most):
    """Return the rows of a group that fit a matrix."""
    return max(d for d in range(1, most + 1) if rows % d == 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_ends_in_a_checkpoint(tmp_path, name):
    options = replace(OPTIONS, **{"children": 3, "epochs": (1, 1, 0, 1)} | VARIANTS[name])
    result = search(MODEL, options, tmp_path / "a.ckpt")
    checkpoint = Checkpoint.load(tmp_path / "a.ckpt")
    assert len(checkpoint.levels) == options.levels
    figures = result.figures["levels"]
    assert [lv.accuracy for lv in checkpoint.levels] == [row["test"]["accuracy"] for row in figures]
    densities = [lv.density for lv in checkpoint.levels]
    assert densities == sorted(densities, reverse=True) == pytest.approx([row["density"] for row in figures])
    if options.deadline_s:
        assert all(row["latency_ms"] <= 1e3 * options.deadline_s for row in figures)
    if options.sparsity:
        for level, s in zip(checkpoint.levels, options.sparsity, strict=True):
            assert 1 - s - 0.05 < level.density <= 1 - s + 1e-6
    assert ("alone" in figures[0]) == options.alone
    assert all(lv.matrices for lv in checkpoint.levels)
    for matrix in (m for lv in checkpoint.levels for m in lv.matrices.values()):
        assert matrix.patterns.shape.group in {
            largest_divisor(matrix.backbone.shape[0], most=g) for g in options.groups
        }
    if name == "one-shot, magnitude":
        assert checkpoint.levels[0].matrices["decoder.weight"].backbone.density == 0.5
    config = Journal.read(folder_of(tmp_path / "a.ckpt") / "journal.jsonl").config
    assert config.items() >= json.loads(json.dumps(options.to_json())).items()
