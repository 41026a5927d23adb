"""Tasks ``rte`` and ``text``: which class a text, or a pair of texts, belongs to; accuracy.

The head is what transformers puts on an encoder for sequence classification.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.model import is_classifier
from rt3_tvm.tasks.base import Batch, Forward, Prediction, digest_of, read_lines
from rt3_tvm.tasks.sentences import batches_by_length, distil_hidden, hidden_states, load_tokenizer, padded

BATCH, LONGEST = 32, 128
RTE_LABELS = ("entailment", "not_entailment")
TEXT_FILES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
RTE_VALID_EVERY = 10
"""RTE's test.tsv has no labels: dev.tsv is the test split, and every tenth pair of train.tsv validates."""


@dataclass(frozen=True)
class Example:
    """One or two texts and the name of their class."""

    texts: tuple[str, ...]
    label: str


class ClassificationData:
    """Texts, tokenised once, and the index of each one's class, (texts,)."""

    def __init__(self, splits: dict[str, list[Example]], labels: Sequence[str], tokenizer: Any) -> None:
        self.tokenizer, self.names = tokenizer, tuple(labels)
        index = {name: i for i, name in enumerate(labels)}
        self.labels = {s: torch.tensor([index[e.label] for e in rows]) for s, rows in splits.items()}
        self.encoded = {
            split: dict(self._encode(*(list(texts) for texts in zip(*(e.texts for e in rows), strict=True))))
            for split, rows in splits.items()
        }

    def _encode(self, *texts: list[str]) -> Any:
        return self.tokenizer(*texts, truncation=True, max_length=LONGEST)

    def _take(self, encoded: dict[str, list[list[int]]], part: list[int]) -> dict[str, torch.Tensor]:
        return padded(self.tokenizer, {key: [values[i] for i in part] for key, values in encoded.items()})

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Return batches of ``tokens`` and ``labels`` (batch,)."""
        encoded = self.encoded[split]
        for part in batches_by_length([len(i) for i in encoded["input_ids"]], BATCH, generator):
            yield {"tokens": self._take(encoded, part), "labels": self.labels[split][part]}

    def unlabelled(self, sentences: list[str], size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Return batches of ``tokens`` of single sentences."""
        encoded = dict(self._encode(sentences))
        for part in batches_by_length([len(i) for i in encoded["input_ids"]], size, generator):
            yield {"tokens": self._take(encoded, part)}

    def predict(self, forward: Forward, batch: Batch) -> Prediction:
        """Return ``logits`` (batch, classes) and ``hidden`` (layers, tokens, features)."""
        outputs, hidden = hidden_states(forward, batch["tokens"])
        return {"logits": outputs["logits"], "hidden": hidden}

    def loss(self, prediction: Prediction, batch: Batch) -> torch.Tensor:
        """Return the cross entropy of the classes."""
        return functional.cross_entropy(prediction["logits"], batch["labels"])

    def distillation(self, prediction: Prediction, teacher: Prediction) -> torch.Tensor:
        """Return the divergence from the teacher's classes, and how far the hidden states are from its."""
        student, other = (functional.log_softmax(p["logits"].float(), dim=-1) for p in (prediction, teacher))
        divergence = functional.kl_div(student, other, log_target=True, reduction="batchmean")
        return divergence + distil_hidden(prediction, teacher)

    def evaluate(self, forward: Forward, split: str) -> dict[str, float]:
        """Return the part of the texts whose class is right."""
        right, count = 0, 0
        with torch.no_grad():
            for batch in self.batches(split):
                found = self.predict(forward, batch)["logits"].argmax(-1)
                right += int((found == batch["labels"]).sum())
                count += len(found)
        return {"accuracy": right / count}

    def fingerprint(self) -> str:
        """Return a SHA-256 of the data."""
        return digest_of(self.names, self.encoded, {s: labels.tolist() for s, labels in self.labels.items()})


def load_rte(data: Path | None, model: torch.nn.Module, source: Path | None) -> ClassificationData:
    """Return RTE from a folder with GLUE's train.tsv and dev.tsv: index, two sentences, a label; one line of heads."""
    if data is None:
        raise Rt3Error("task rte needs `data`: a folder with train.tsv, dev.tsv")
    train, test = (_read_table(data / name, (1, 2), 3, 4, RTE_LABELS) for name in ("train.tsv", "dev.tsv"))
    splits = {
        "train": [e for i, e in enumerate(train) if i % RTE_VALID_EVERY],
        "valid": train[::RTE_VALID_EVERY],
        "test": test,
    }
    return _with_head("rte", splits, RTE_LABELS, model, source)


def load_text(data: Path | None, model: torch.nn.Module, source: Path | None) -> ClassificationData:
    """Return a folder's train.tsv, dev.tsv and test.tsv: a text and a label in each line, separated by a tab, no heads."""
    folder = _text_folder(data)
    labels = _text_labels(folder)
    splits = {split: _read_table(folder / file, (0,), 1, 2, labels) for split, file in TEXT_FILES.items()}
    return _with_head("text", splits, labels, model, source)


def _with_head(
    task: str,
    splits: dict[str, list[Example]],
    labels: Sequence[str],
    model: torch.nn.Module,
    source: Path | None,
) -> ClassificationData:
    classes = getattr(model.config, "num_labels", 0)
    if not is_classifier(model) or classes != len(labels):
        raise Rt3Error(
            f"task {task} has {len(labels)} classes ({choices(labels)}), {type(model).__name__} is no classifier of as many"
        )
    return ClassificationData(splits, labels, load_tokenizer(task, source))


def _read_table(
    path: Path, texts: tuple[int, ...], label: int, columns: int, labels: Sequence[str] | None = None
) -> list[Example]:
    """Return the rows of a file of tab-separated, unquoted columns; GLUE's have a line of heads, those of two columns none."""
    rows = []
    heads = columns > 2
    for number, line in enumerate(read_lines(path), 1):
        if heads and number == 1:
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != columns:
            raise Rt3Error(f"{path}:{number}: {len(cells)} columns separated by tabs, expected {columns}")
        if labels is not None and cells[label] not in labels:
            raise Rt3Error(f"{path}:{number}: label '{cells[label]}': choose from {choices(labels)}")
        rows.append(Example(tuple(cells[i] for i in texts), cells[label]))
    if not rows:
        raise Rt3Error(f"{path}: no rows")
    return rows


def rte_classes(_data: Path | None) -> int:
    """Return RTE's number of classes."""
    return len(RTE_LABELS)


def text_classes(data: Path | None) -> int:
    """Return the number of labels in a folder's training file."""
    return len(_text_labels(_text_folder(data)))


def _text_folder(data: Path | None) -> Path:
    if data is None:
        raise Rt3Error(f"task text needs `data`: a folder with {', '.join(TEXT_FILES.values())}")
    return data


def _text_labels(data: Path) -> list[str]:
    path = data / TEXT_FILES["train"]
    labels = sorted({e.label for e in _read_table(path, (0,), 1, 2)})
    if len(labels) < 2:
        raise Rt3Error(f"{path}: one label, '{labels[0]}': give texts of two classes or more")
    return labels
