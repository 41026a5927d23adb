"""The phases of training: dense, block pruning, the backbone, levels jointly or alone. Each goes on where it was killed."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from rt3_tvm.checkpoint import Level, flatten_levels, unflatten_levels
from rt3_tvm.errors import JobError
from rt3_tvm.export import LinearLayer
from rt3_tvm.pattern import Backbone
from rt3_tvm.search.block_pruning import GroupLasso, cut_backbones
from rt3_tvm.search.options import SearchOptions
from rt3_tvm.search.progress import Progress
from rt3_tvm.search.store import Facts, Store, Tensors, put, take
from rt3_tvm.search.training import (
    MaskedModel,
    Masks,
    Penalty,
    Trainer,
    TrainOptions,
    evaluating,
    masks_of,
    seed_of,
)
from rt3_tvm.tasks import TASKS
from rt3_tvm.tasks.base import Dataset

Cut = Callable[[dict[str, Any], float], tuple[Level, ...]]
"""Cuts the levels from weights, a part of the way from the backbone to their sparsity."""


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

    def load(self, weights: Tensors) -> None:
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
        found = self.trained.store.load(self.partial)
        if found is None:
            return 0
        tensors, self.facts = found
        self.trained.load(take(tensors, "model/"))
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
                rate, again = ("--rate", "dense") if self.name == "dense" else ("--pruned-rate", "blocks")
                raise JobError(
                    f"{self.name}: {error}: lower {rate} (now {self.trainer.options.rate:g}) and give --restart {again}; "
                    f"all before that epoch is kept in '{t.store.folder}'"
                ) from error
            accuracy = score() if score else math.nan
        self.facts["loss"].append(loss)
        self.facts["accuracy"].append(accuracy if score else None)
        self.facts["seconds"] += time.perf_counter() - begin
        said = f", {TASKS[t.options.task].metric} {accuracy:.4f}" if score else ""
        t.progress.say(f"{self.name} {number + 1}/{self.epochs}: loss {loss:.4f}{said}")
        return accuracy

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
    found = trained.store.load(name)
    if found is None:
        return None
    trained.store.remove(partial_name(name))  # it may have been killed just before that
    tensors, facts = found
    trained.load(take(tensors, "model/"))
    trained.figures[name] = facts
    return take(tensors, "extra/")


def train_dense(t: Trained) -> None:
    """Train without masks, keep the epoch that validates best, and make it the teacher."""
    if ended(t, "dense") is None:
        phase = Phase(t, "dense", t.options.epochs[0], teacher=False)
        for number in range(phase.first, phase.epochs):
            accuracy = phase.epoch(number, [(1.0, {})], score=lambda: t.validate({})["accuracy"])
            _keep_best(phase, accuracy)
            phase.end_epoch()
        _take_best(phase)
        phase.facts["valid"] = t.validate({})
        phase.end()
    t.teacher = copy.deepcopy(t.model).eval().requires_grad_(False)


def _keep_best(phase: Phase, accuracy: float) -> None:
    """Keep the weights where no epoch before validated better."""
    if accuracy > phase.facts.get("best", -math.inf):
        phase.facts["best"] = accuracy
        others = {k: v for k, v in phase.extra.items() if not k.startswith("best/")}
        phase.extra = others | put({n: v.clone() for n, v in phase.trained.model.state_dict().items()}, "best/")


def _take_best(phase: Phase) -> None:
    best = take(phase.extra, "best/")
    if best:
        phase.trained.load(best)


def whole(backbones: dict[str, Backbone]) -> Masks:
    """Return the masks that keep all that block pruning left, as the model stores the weights."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(b.oriented(b.mask().astype(np.float32))))
        for name, b in backbones.items()
    }


def prune_blocks(t: Trained, layers: Sequence[LinearLayer], ratios: dict[str, float]) -> dict[str, Backbone]:
    """Train with the group lasso or under a rising ratio, and return the backbone that is cut at the end."""
    o = t.options
    found = ended(t, "blocks")
    if found is None:
        phase = Phase(t, "blocks", o.epochs[1] if o.block in ("lasso", "gradual") else 0)
        lasso = GroupLasso(layers, o.block_rows, o.lasso) if o.block == "lasso" else None
        for number in range(phase.first, phase.epochs):
            masks: Masks = {}
            if lasso:
                lasso.reweight(t.model)
            else:
                rising = cut_backbones(layers, t.weights(), ratios, o.block_rows, risen(number, phase.epochs))
                masks = whole(rising)
            phase.epoch(number, [(1.0, masks)], lasso)
            phase.end_epoch()
        seed = seed_of(o.seed, "random blocks") if o.block == "random" else None
        backbones = cut_backbones(layers, t.weights(), ratios, o.block_rows, seed=seed)
        phase.end({name: torch.from_numpy(b.columns) for name, b in backbones.items()})
        return backbones
    return {
        layer.name: Backbone(layer.shape, o.block_rows, found[layer.name].numpy(), layer.transposed) for layer in layers
    }


def train_backbone(t: Trained, backbones: dict[str, Backbone]) -> None:
    """Train under the backbone's mask."""
    if ended(t, "backbone") is not None:
        return
    masks = whole(backbones)
    phase = Phase(t, "backbone", t.options.epochs[2])
    for number in range(phase.first, phase.epochs):
        phase.epoch(number, [(1.0, masks)], score=lambda: t.validate(masks)["accuracy"])
        phase.end_epoch()
    phase.facts["valid"] = t.validate(masks)
    phase.end()


def risen(number: int, epochs: int) -> float:
    """Return the part of the final sparsity in an epoch, from 0, that many of which it rises: 1 - (1 - t)^3.

    Source: Zhu and Gupta, arXiv 1710.01878.
    """
    return 1.0 - (1.0 - min(1.0, (number + 1) / max(1, epochs))) ** 3


def train_levels(t: Trained, name: str, cut: Cut, weights: Sequence[float]) -> tuple[Level, ...]:
    """Train levels jointly and return them; the model ends with the weights that validated best at full sparsity.

    Parameters
    ----------
    name
        Of the phase.
    cut
        Cuts as many levels as there are ``weights``, those of their losses.
    """
    found = ended(t, name)
    if found is not None:
        return _levels_of(t.figures[name]["levels"], found)
    phase = Phase(t, name, t.options.epochs[3])
    ramp = max(1, phase.epochs // 2) if t.options.gradual else 1
    levels = cut(t.weights(), 1.0 if not phase.epochs else risen(0, ramp))
    if phase.first:
        levels = _levels_of(phase.facts["levels"], take(phase.extra, "levels/"))
    for number in range(phase.first, phase.epochs):
        if 0 < number < ramp:
            levels = cut(t.weights(), risen(number, ramp))
        masks = [masks_of(level.matrices) for level in levels]

        def score(masks: list[Masks] = masks) -> float:
            scores = [t.validate(m)["accuracy"] for m in masks]
            return sum(w * a for w, a in zip(weights, scores, strict=True)) / sum(weights)

        accuracy = phase.epoch(number, list(zip(weights, masks, strict=True)), score=score)
        if number + 1 >= ramp:
            _keep_best(phase, accuracy)
        tensors, phase.facts["levels"] = _tables_of(levels)
        phase.extra = put(take(phase.extra, "best/"), "best/") | put(tensors, "levels/")
        phase.end_epoch()
    _take_best(phase)
    tensors, phase.facts["levels"] = _tables_of(levels)
    phase.end(tensors)
    return levels


def _tables_of(levels: tuple[Level, ...]) -> tuple[Tensors, Facts]:
    patterns, matrices = flatten_levels(levels)
    rows = [{"sparsity": lv.sparsity, "frequency_hz": lv.frequency_hz} for lv in levels]
    return {n: torch.from_numpy(v) for n, v in patterns.items()}, {"matrices": matrices, "levels": rows}


def _levels_of(table: Facts, tensors: Tensors) -> tuple[Level, ...]:
    return unflatten_levels(table, {n: v.numpy() for n, v in tensors.items()})
