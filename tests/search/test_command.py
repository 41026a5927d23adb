"""``rt3 search`` as a user types it: tables, reports, one line for every mistake."""

import json
import re

import pytest

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.cli.main import main
from rt3_tvm.files import held
from rt3_tvm.search import folder_of
from rt3_tvm.tasks.language_model import LanguageModelData
from tests.search.small import COMMAND


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
    (["--deadline", "0"], 2, "give --deadline, or --sparsity"),
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
