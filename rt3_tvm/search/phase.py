"""One phase of training, whose state is on disk after every epoch, so that it goes on where it was killed."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from rt3_tvm.errors import JobError
from rt3_tvm.search.options import SearchOptions
from rt3_tvm.search.progress import Progress
from rt3_tvm.search.store import Facts, Store, Tensors, put, take
from rt3_tvm.search.training import MaskedModel, Masks, Penalty, Trainer, TrainOptions, evaluating, seed_of
from rt3_tvm.tasks import TASKS
from rt3_tvm.tasks.base import Dataset


@dataclass
class Trained:
    """A model in training, and what it is trained on."""

    model: torch.nn.Module
    data: Dataset
    options: SearchOptions
    store: Store
    progress: Progress
    sentences: tuple[str, ...] = ()
    teacher: torch.nn.Module | None = None
    figures: dict[str, Facts] = field(default_factory=dict)

    def training(self, teacher: bool = True) -> TrainOptions:
        """Return how phases train; without a teacher the model's dropout is on."""
        o = self.options
        share = o.distillation if teacher else 0.0
        task = TASKS[o.task]
        return TrainOptions(
            (o.pruned_rate or task.pruned_rate) if teacher else (o.rate or task.rate),
            distillation=share,
            masked_gradients=o.masked_gradients,
            dropout=share == 0.0,
            unlabelled=o.unlabelled_batches,
            precision=o.precision,
        )

    @property
    def batches(self) -> int:
        """Batches with labels of an epoch."""
        return sum(1 for _ in islice(self.data.batches("train"), self.options.epoch_steps or None))

    def validate(self, masks: Masks, split: str = "valid") -> dict[str, float]:
        """Return the figures of the model under masks."""
        with evaluating(self.model):
            return self.data.evaluate(MaskedModel(self.model, masks), split)

    def weights(self) -> dict[str, Any]:
        """Return the weights as NumPy arrays, copied."""
        return {name: value.detach().numpy().copy() for name, value in self.model.state_dict().items()}

    def set_weights(self, weights: Tensors) -> None:
        """Take weights."""
        self.model.load_state_dict(weights)


def partial_name(phase: str) -> str:
    """Return the name of a phase's state while it runs."""
    return f"{phase}.partial"


@dataclass
class Phase:
    """One phase, whose state is on disk after every epoch.

    ``facts``: figures so far; ``extra``: what it needs besides weights and optimizer.
    """

    trained: Trained
    name: str
    epochs: int
    teacher: bool = True
    facts: Facts = field(default_factory=lambda: {"loss": [], "accuracy": [], "seconds": 0.0})
    extra: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        t = self.trained
        batches = t.batches
        seed = seed_of(t.options.seed, self.name)
        teacher = t.teacher if self.teacher else None
        options = t.training(teacher is not None)
        self.batches = batches
        self.trainer = Trainer(t.model, t.data, options, self.epochs * batches, seed, teacher, t.sentences)
        self.first = self._resume()

    @property
    def partial(self) -> str:
        """Name of its state while it runs."""
        return partial_name(self.name)

    def _resume(self) -> int:
        """Take the state of a phase that was killed, and return its next epoch."""
        found = self.trained.store.read(self.partial)
        if found is None:
            return 0
        tensors, self.facts = found
        self.trained.set_weights(take(tensors, "model/"))
        self.trainer.restore(take(tensors, "optimizer/"))
        self.extra = take(tensors, "extra/")
        return len(self.facts["loss"])

    def epoch(
        self,
        number: int,
        levels: Sequence[tuple[float, Masks]],
        penalty: Penalty | None = None,
        score: Callable[[], float] | None = None,
    ) -> float:
        """Train an epoch, score it, and return the score; ``end_epoch`` keeps it."""
        begin = time.perf_counter()
        t = self.trained
        with t.progress.task(f"{self.name} {number + 1}/{self.epochs}", self.batches) as tick:
            try:
                loss = self.trainer.epoch(number, levels, penalty, self.batches, tick)
            except JobError as error:
                rate, again = ("`rate`", "dense") if self.name == "dense" else ("`pruned_rate`", "blocks")
                raise JobError(
                    f"{self.name}: {error}: lower {rate} (now {self.trainer.options.rate:g}) and give `restart` {again}; "
                    f"all before that epoch is kept in '{t.store.folder}'"
                ) from error
            accuracy = score() if score else math.nan
        self.facts["loss"].append(loss)
        self.facts["accuracy"].append(accuracy if score else None)
        self.facts["seconds"] += time.perf_counter() - begin
        said = f", {TASKS[t.options.task].metric} {accuracy:.4f}" if score else ""
        t.progress.say(f"{self.name} {number + 1}/{self.epochs}: loss {loss:.4f}{said}")
        return accuracy

    def keep_best(self, accuracy: float) -> None:
        """Keep the weights where no epoch before validated better."""
        if accuracy > self.facts.get("best", -math.inf):
            self.facts["best"] = accuracy
            others = {k: v for k, v in self.extra.items() if not k.startswith("best/")}
            self.extra = others | put({n: v.clone() for n, v in self.trained.model.state_dict().items()}, "best/")

    def take_best(self) -> None:
        """Give the model the weights that were kept, if any were."""
        best = take(self.extra, "best/")
        if best:
            self.trained.set_weights(best)

    def end_epoch(self) -> None:
        """Write the state, so that a killed search goes on from here."""
        t = self.trained
        tensors = put(t.model.state_dict(), "model/") | put(self.trainer.state(), "optimizer/")
        t.store.save(self.partial, tensors | put(self.extra, "extra/"), self.facts)

    def end(self, extra: Tensors | None = None) -> None:
        """Write what the phase came to, and remove its state."""
        t = self.trained
        t.store.save(self.name, put(t.model.state_dict(), "model/") | put(extra or {}, "extra/"), self.facts)
        t.store.remove(self.partial)
        t.figures[self.name] = self.facts


def ended(trained: Trained, name: str) -> Tensors | None:
    """Take the weights of a phase that ended before, and return what else it left; None where it has not ended."""
    found = trained.store.read(name)
    if found is None:
        return None
    trained.store.remove(partial_name(name))  # it may have been killed just before that
    tensors, facts = found
    trained.set_weights(take(tensors, "model/"))
    trained.figures[name] = facts
    return take(tensors, "extra/")
