"""What a model is trained for: data, loss and metric of each task, one row each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rt3_tvm import model as models
from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.tasks.base import Dataset
from rt3_tvm.tasks.classification import load_rte, load_text, rte_classes, text_classes
from rt3_tvm.tasks.language_model import load_language_model
from rt3_tvm.tasks.sentences import read_sentences
from rt3_tvm.tasks.similarity import load_similarity

__all__ = ["TASKS", "Dataset", "Task", "load_task", "read_sentences"]


@dataclass(frozen=True)
class Task:
    """One row.

    Parameters
    ----------
    metric
        Name of its accuracy; higher is better.
    rate
        The usual learning rate of AdamW.
    pruned_rate
        That of everything after dense training: what was cut is made up for by larger steps (docs/results/search.md).
    load
        Returns the data for a folder, a model and the model's own folder.
    classes
        Returns the number of classes in a folder, for which a bare encoder gets a head; None: no head.
    """

    summary: str
    metric: str
    rate: float
    pruned_rate: float
    load: Callable[[Path | None, torch.nn.Module, Path | None], Dataset]
    classes: Callable[[Path | None], int] | None = None
    with_head: bool = True


TASKS = {
    "lm": Task(
        "next word; without --data the text of Python's help", "next-token accuracy", 1e-3, 1e-3, load_language_model
    ),
    "sts": Task(
        "similarity of two sentences, STS-B", "Spearman's correlation", 5e-5, 4e-4, load_similarity, with_head=False
    ),
    "rte": Task("entailment, GLUE's RTE", "accuracy", 5e-5, 4e-4, load_rte, rte_classes),
    "text": Task("class of a text, files of text and label", "accuracy", 5e-5, 4e-4, load_text, text_classes),
}


def load_task(name: str, data: Path | None, model_name: str, seed: int = 0) -> tuple[torch.nn.Module, Dataset]:
    """Return a model, with a head where the task needs one, and the task's data for it.

    Parameters
    ----------
    data
        Folder with the files of the task; None for what comes with Python, where a task has that.
    model_name
        As :func:`rt3_tvm.model.load` takes it.
    seed
        Of the head's first weights.

    Raises
    ------
    Rt3Error
        No such task or model, files that are missing or malformed (it names file and line), or a model that does not fit.
    """
    if name not in TASKS:
        raise Rt3Error(f"unknown task '{name}': choose from {choices(TASKS)}")
    task = TASKS[name]
    model = models.load(model_name, task.with_head)
    source = models.source_directory(model_name)
    if task.classes is not None and source is not None and not models.is_classifier(model):
        model = models.load_classifier(source, task.classes(data), seed)
    return model, task.load(data, model, source)
