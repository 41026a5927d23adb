"""What training asks of a task."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from rt3_tvm.errors import Rt3Error

Batch = dict[str, Any]
Prediction = dict[str, torch.Tensor]
Forward = Callable[..., Any]
"""A model, or a model with the masks of a level applied: keyword tensors in, its outputs out."""


class Dataset(Protocol):
    """The data of a task. ``split`` is train, valid or test; the search never reads test, its end does once."""

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Return the batches of a split, shuffled by a generator."""

    def unlabelled(self, sentences: list[str], size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Return batches of ``size`` plain sentences, shuffled, to distil from the teacher; an error where the task cannot."""

    def predict(self, forward: Forward, batch: Batch) -> Prediction:
        """Return what the loss and the metric are made of."""

    def loss(self, prediction: Prediction, batch: Batch) -> torch.Tensor:
        """Return the loss of a prediction against the labels."""

    def distillation(self, prediction: Prediction, teacher: Prediction) -> torch.Tensor:
        """Return the loss of a prediction against another model's."""

    def evaluate(self, forward: Forward, split: str) -> dict[str, float]:
        """Return figures by name; ``accuracy`` is the task's metric, higher is better."""

    def fingerprint(self) -> str:
        """Return a SHA-256 of the data, to tell one data set from another."""


def digest_of(*parts: Any) -> str:
    """Return the SHA-256 of what prints the same when it is the same: lists, texts, numbers."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises
    ------
    Rt3Error
        It cannot be read, or is not UTF-8: it names the line.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Rt3Error(f"'{path}' cannot be read: {error.strerror}: pass the folder of the data as `data`") from error
    try:
        lines = text.decode("utf-8").split("\n")  # not splitlines: texts have other characters that it would break at
        return lines[:-1] if lines[-1] == "" else lines
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise Rt3Error(f"{path}:{line}: not UTF-8") from error
