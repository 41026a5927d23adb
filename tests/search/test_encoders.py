"""Searches over an encoder of a local directory: similarity and classifiers."""

from dataclasses import replace

import pytest

from rt3_tvm import search
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.pattern import EACH_BLOCK, PatternShape
from rt3_tvm.search import SearchOptions
from tests.search.small import rte_folder, sts_folder, text_folder

ENCODER = SearchOptions(
    task="sts",
    device="odroid-xu3",
    power="published",
    sparsity=(0.3, 0.4, 0.5),
    block_sparsity=0.1,
    block_rows=128,
    search="none",
    epochs=(1, 0, 0, 1),
    threads=1,
)


def test_similarity_with_unlabelled_text(encoder, tmp_path):
    """A handful of pairs: every part of the path that the full experiment takes with MiniLM."""
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
    result = search(encoder, options, tmp_path / "a.ckpt", folder)
    densities = [row["density"] for row in result.figures["levels"]]
    assert densities == pytest.approx([0.359375, 0.2578125, 0.1953125])
    assert (tmp_path / "a.ckpt" / "tokenizer.json").is_file()
    assert result.checkpoint.skipped == {"pooler.dense.weight": "excluded"}


@pytest.mark.parametrize("task", ["rte", "text"])
def test_classifiers_are_searched_too(encoder, tmp_path, task):
    """A head is put on the encoder, stays dense, and is in the checkpoint."""
    folder = {"rte": rte_folder, "text": text_folder}[task](tmp_path)
    result = search(encoder, replace(ENCODER, task=task), tmp_path / "a.ckpt", folder)
    checkpoint = Checkpoint.load(tmp_path / "a.ckpt")
    assert checkpoint.description["class"] == "BertForSequenceClassification"
    classes = {"rte": 2, "text": 3}[task]
    assert checkpoint.weights["classifier.weight"].shape[0] == classes
    assert checkpoint.skipped["classifier.weight"].startswith(f"{classes}x128 is smaller")
    assert [row["density"] for row in result.figures["levels"]] == sorted(
        (lv.density for lv in checkpoint.levels), reverse=True
    )
