"""A slice of ``benchmarks/zoo.py``: one model for each cause that once made a model wrong, refused or crash, at one length."""

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
import zoo_check
import zoo_page
import zoo_rows

FORK = multiprocessing.get_context("fork")
ROWS = {row.name: row for row in zoo_rows.rows()}
SLICE = {
    "modernbert-window": "a window shorter than the length, in every other layer",
    "gemma2-window": "scores with a soft cap, RMSNorm of 1 + weight",
    "deberta-v3": "relative positions",
    "t5-encoder": "a class that AutoModel does not choose; scores without a scale",
    "albert-groups": "layers that share weights",
    "gpt2-lm": "a tied head; weights stored the other way around",
    "llama-sequence": "the last token that is no padding is read",
    "squeezebert": "grouped convolutions as linear layers",
    "mobilebert": "neighbours are read: what fills the length is embedded as zeros",
    "fnet": "no mask; Fourier transforms",
    "roformer": "rotary positions that come of a split constant",
    "kolibri1": "experts: every one on every token, topk spelt out; a bias that is a constant",
    "falcon-alibi": "a position bias that is rounded to bfloat16",
    "llama4_text": "complex numbers; experts that are scattered to",
    "xlm": "a number of the data is asserted",
    "esm2-rotary": "tokens that are masked out are scaled away; products that TVM warns of",
    "swin": "windows of an image that are shifted",
    "whisper-encoder": "sound, convolutions with a stride",
    "hubert": "samples of sound, whose number the configuration leaves open; normalised groups; a position convolution of groups",
    "audio-spectrogram-transformer": "patches that overlap",
    "xlnet": "the length first; weights of three axes; scores shifted for relative positions",
    "glpn": "an image whose size the configuration leaves open; convolutions of each channel",
}


@pytest.mark.parametrize("name", SLICE)
def test_row(name, capfd):
    record = zoo_check.check(replace(ROWS[name], lengths=(21,)), lambda _: None, "quick")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")  # TVM and transformers have a lot to say of ESM and Swin
    assert (record["outcome"], record["detail"]) == ("right", "")
    assert record["error"] <= zoo_check.TOLERANCE


def test_a_wrong_value_is_seen_at_real_tokens_only():
    want, mask = np.ones((2, 5, 3), np.float32), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    got = want.copy()
    got[1, 4] = np.nan
    assert zoo_check.error_of(got, want, mask) == 0.0
    got[1, 2, 0] = 1.5
    assert zoo_check.error_of(got, want, mask) == pytest.approx(0.5)
    got[0, 0, 0] = np.nan
    assert zoo_check.error_of(got, want, mask) == float("inf")


def test_nothing_hides_behind_zeros():
    model = zoo_check.built(ROWS["bert"])
    for name, parameter in model.named_parameters():
        assert parameter.detach().abs().min() > 0, name


def test_the_registries_hold_more_than_the_table_and_every_name_is_one_row():
    names = [row.name for row in zoo_rows.rows()]
    assert len(set(names)) == len(names) > 2 * len(zoo_rows.NAMED)
    assert {row.group for row in zoo_rows.rows()} == set(zoo_rows.GROUPS)


def test_a_crash_is_a_result(monkeypatch):
    monkeypatch.setattr(zoo_check, "run_in_process", _dies)
    record = zoo.run_row(ROWS["bert"], FORK, 600, "whole")
    assert (record["outcome"], record["stage"], record["detail"]) == ("crash", "compile", "SIGTERM: last words")


def _dies(_row, log, _effort, connection):
    Path(log).write_text("first\nlast words\n")
    connection.send("compile")
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_hang_is_a_result(monkeypatch):
    """The alarm goes off as soon as the row has said where it is, not when some time has passed."""
    said = FORK.Event()

    class Alarm(threading.Timer):
        def run(self):
            said.wait()
            self.function()

    def hangs(_row, _log, _effort, connection):
        connection.send("compile")
        said.set()
        signal.pause()

    monkeypatch.setattr(threading, "Timer", Alarm)
    monkeypatch.setattr(zoo_check, "run_in_process", hangs)
    record = zoo.run_row(ROWS["bert"], FORK, 600, "whole")
    assert (record["outcome"], record["stage"]) == ("hang", "compile")


PAGE_ROWS = [zoo_rows.Row(name, group, name.upper()) for name, group in zip("abcde", zoo_rows.GROUPS, strict=False)]
RECORDS = [
    {"outcome": "right", "error": 1e-6, "elementwise": {"time": 0.02}},
    {"outcome": "refused", "detail": "no | operator"},
    {"outcome": "export-refused", "control": "data", "detail": "x"},
    {"outcome": "left out", "detail": "takes more"},
    {"outcome": "crash", "stage": "run", "detail": "SIGSEGV\nmore"},
]


def records(swept):
    return [
        {"name": row.name, "group": row.group, "class": row.model_class, "swept": swept}
        | json.loads(json.dumps(record))
        for row, record in zip(PAGE_ROWS, RECORDS, strict=True)
    ]


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "models.md"
    path.write_text(f"before\n{zoo_page.BEGIN}\nold\n{zoo_page.END}\nafter\n")
    zoo_page.write_markdown(path, records("quick 1"), PAGE_ROWS)
    return path


def test_the_page_is_filled_between_its_markers(page):
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| a | A | right | 1.0e-06 | 2 % | quick 1 |  |" in text
    assert "| b | B | refused |  |  | quick 1 | no / operator |" in text
    assert "| e | E | crash |  |  | quick 1 | run: SIGSEGV |" in text and "| d | quick 1 | takes more |" in text
    assert "1 of 3 text models that torch.export takes are right (33.3 %). Rows by sweep: 5 quick 1." in text


def test_the_page_keeps_rows_that_were_not_run_again(page):
    text = page.read_text()
    zoo_page.write_markdown(page, [], PAGE_ROWS)
    assert page.read_text() == text
    again = records("whole 2")
    zoo_page.write_markdown(page, [again[0] | {"error": 2e-6}, again[3] | {"outcome": "right"}], PAGE_ROWS)
    text = page.read_text()
    assert "| a | A | right | 2.0e-06 | 2 % | whole 2 |  |" in text and "quick 1 | no / operator |" in text
    assert "| d | D | right |" in text and "Left out" not in text and "3 quick 1, 2 whole 2" in text


def test_the_page_names_rows_that_were_never_swept(page):
    assert "Not swept" not in page.read_text()
    rows = [zoo_rows.Row(name, zoo_rows.IMAGE, name.upper()) for name in ("f", "g")]
    for _ in range(2):
        zoo_page.write_markdown(page, [], [*PAGE_ROWS, *rows])
        assert page.read_text().count("\nNot swept: f, g.\n") == 1
    zoo_page.write_markdown(page, [records("quick 1")[0] | {"name": "f"}], [*PAGE_ROWS, *rows])
    assert "\nNot swept: g.\n" in page.read_text()


def test_the_page_forgets_rows_that_are_none_any_more(page):
    zoo_page.write_markdown(page, [], PAGE_ROWS[:4])
    assert "SIGSEGV" not in page.read_text()


def test_the_page_of_the_repository_reads_back_as_it_is(tmp_path):
    page, copy = Path(__file__).parents[2] / "docs" / "models.md", tmp_path / "models.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    known = zoo_rows.rows()
    assert len(list(zoo_page.kept(page, known))) > 400
    zoo_page.write_markdown(copy, [], known)
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
