"""Children of a search: cut, trained for a while from the backbone, scored on the validation split."""

import time
from dataclasses import dataclass

import torch

from rt3_tvm.errors import JobError
from rt3_tvm.search.options import SearchOptions
from rt3_tvm.search.space import Choice, Space
from rt3_tvm.search.store import Tensors
from rt3_tvm.search.training import MaskedModel, Trainer, TrainOptions, evaluating, masks_of, seed_of
from rt3_tvm.tasks.base import Dataset

Scores = dict[str, object]


@dataclass(frozen=True, eq=False)
class ChildTrainer:
    """Trains and scores children; the same child comes to the same scores, whoever trains it and in whatever order.

    Parameters
    ----------
    start
        The weights under the backbone's mask, from which every child begins.
    teacher
        The dense model.
    """

    model: torch.nn.Module
    start: Tensors
    teacher: torch.nn.Module
    data: Dataset
    space: Space
    options: SearchOptions
    training: TrainOptions
    sentences: tuple[str, ...] = ()

    def __call__(self, choice: Choice) -> Scores:
        """Return the accuracy of each level after training together, or why there is none; and the seconds it took."""
        begin = time.perf_counter()
        self.model.load_state_dict(self.start)
        weights = {name: value.numpy() for name, value in self.start.items()}
        levels = self.space.cut(choice, weights)
        masks = [masks_of(level.matrices) for level in levels]
        most = self.options.child_steps or None
        batches = sum(1 for _ in self.data.batches("train"))
        seed = seed_of(self.options.seed, "child", choice.key)
        steps = min(batches, most or batches)
        trainer = Trainer(self.model, self.data, self.training, steps, seed, self.teacher, self.sentences)
        try:
            trainer.epoch(0, list(zip(self.options.level_weights, masks, strict=True)), most=most)
        except JobError as error:
            return {"failed": str(error), "seconds": time.perf_counter() - begin}
        with evaluating(self.model):
            accuracy = [self.data.evaluate(MaskedModel(self.model, m), "valid")["accuracy"] for m in masks]
        density = [level.density for level in levels]
        return {"accuracy": accuracy, "density": density, "seconds": time.perf_counter() - begin}
