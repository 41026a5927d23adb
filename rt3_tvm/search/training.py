"""Training one shared weight under masks: dense, under the backbone's mask, or at all levels at once."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from rt3_tvm import rt3
from rt3_tvm.errors import JobError
from rt3_tvm.pattern import SparseMatrix
from rt3_tvm.tasks.base import Batch, Dataset

Masks = dict[str, torch.Tensor]
Tensors = dict[str, torch.Tensor]
Penalty = Callable[[torch.nn.Module], torch.Tensor]
Tick = Callable[[], None]
"""Called after every batch."""

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
"""By precision."""
UNLABELLED_BATCH = 64
"""Sentences of a batch without labels."""


@dataclass(frozen=True)
class TrainOptions:
    """How a phase trains.

    Parameters
    ----------
    rate
        Learning rate of AdamW; it falls linearly to 0 after a tenth of the steps in which it rises.
    clip
        Largest norm of the gradient. RT3's.
    distillation
        Weight of the teacher's outputs against the labels, in [0, 1].
    masked_gradients
        Whether a level's gradient reaches only the weights that it keeps; else all of them, as in RT3's public code.
    dropout
        Whether the model's dropout is on.
    unlabelled
        Batches of unlabelled sentences after each batch with labels.
    precision
        A row of DTYPES.
    """

    rate: float
    clip: float = rt3.CLIP
    distillation: float = 0.5
    masked_gradients: bool = True
    dropout: bool = True
    unlabelled: int = 1
    precision: str = "float32"


def seed_of(*parts: object) -> int:
    """Return a seed that depends on all parts: the same for a resumed search, and on every worker."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def masks_of(matrices: dict[str, SparseMatrix]) -> Masks:
    """Return the masks of pruned matrices as the model stores the weights."""
    masks = {}
    for name, matrix in matrices.items():
        masks[name] = torch.from_numpy(matrix.backbone.stored(matrix.mask()).copy()).float()
    return masks


class MaskedModel:
    """A model with the masks of a level applied; its weights stay whole and shared."""

    def __init__(self, model: torch.nn.Module, masks: Masks, masked_gradients: bool = True) -> None:
        self.model, self.masks, self.masked_gradients = model, masks, masked_gradients

    def __call__(self, **inputs: Any) -> Any:
        """Run the model."""
        weights = dict(self.model.named_parameters())
        masked = {name: weights[name] * mask.view_as(weights[name]) for name, mask in self.masks.items()}
        if not self.masked_gradients:  # the value of the masked weight, the gradient of the whole one
            masked = {name: weights[name] + (m - weights[name]).detach() for name, m in masked.items()}
        return functional_call(self.model, masked, (), inputs)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@contextmanager
def computing(precision: str) -> Iterator[None]:
    """Compute in a precision; attention in plain operators, whose gradients are faster on a CPU than those of the fused one."""
    dtype = DTYPES[precision]
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        yield


class Trainer:
    """One phase of training, epoch by epoch. An epoch depends on the seed and its number, not on those before it.

    Parameters
    ----------
    steps
        Batches with labels of the whole phase, for the learning rate.
    seed
        Decides the order of the batches, and dropout.
    teacher
        The dense model to distil from; None for labels alone.
    sentences
        Unlabelled text to distil on.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: Dataset,
        options: TrainOptions,
        steps: int,
        seed: int,
        teacher: torch.nn.Module | None = None,
        sentences: Sequence[str] = (),
    ) -> None:
        self.model, self.data, self.options, self.seed = model, data, options, seed
        self.teacher = teacher if options.distillation > 0.0 else None
        self.sentences = sentences if self.teacher is not None else ()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, fused=True)
        self.steps, self.done = max(1, steps), 0

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        rise = max(1, self.steps // 10)
        fall = (self.steps - self.done) / max(1, self.steps - rise)
        return self.options.rate * min((self.done + 1) / rise, max(0.0, fall))

    def epoch(
        self,
        number: int,
        levels: Sequence[tuple[float, Masks]],
        penalty: Penalty | None = None,
        most: int | None = None,
        tick: Tick = lambda: None,
    ) -> float:
        """Train one epoch and return the mean loss of its batches with labels.

        Parameters
        ----------
        levels
            For each level its weight in the loss, and its masks. Gradients of all levels are summed before a step.
        penalty
            A further loss of the weights alone.
        most
            Batches with labels after which it ends.

        Raises
        ------
        JobError
            The loss is no longer finite; the model has the weights with which the epoch began.
        """
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        torch.manual_seed(seed_of(self.seed, number, "dropout"))
        shuffle = torch.Generator().manual_seed(seed_of(self.seed, number, "batches"))
        count = sum(1 for _ in islice(self.data.batches("train"), most))
        plain = self._unlabelled(number, count)
        total = 0.0
        self.model.train(self.options.dropout)
        for i, batch in enumerate(islice(self.data.batches("train", shuffle), most)):
            loss = self._step(batch, levels, penalty, labelled=True)
            for extra in islice(plain, self.options.unlabelled):
                loss += 0.0 * self._step(extra, levels, penalty, labelled=False)  # its loss counts if it is not finite
            if not math.isfinite(loss):
                self.model.load_state_dict(before)
                raise JobError(f"the loss diverged after {i} batches of epoch {number + 1}")
            total += loss
            self.done += 1
            tick()
        self.model.eval()
        return total / count

    def _unlabelled(self, number: int, labelled: int) -> Iterator[Batch]:
        """Return batches of unlabelled sentences, other ones in each epoch."""
        if not self.sentences:
            return iter(())
        shuffle = torch.Generator().manual_seed(seed_of(self.seed, number, "unlabelled"))
        wanted = labelled * self.options.unlabelled * UNLABELLED_BATCH
        chosen = torch.randperm(len(self.sentences), generator=shuffle)[:wanted].tolist()
        return self.data.unlabelled([self.sentences[i] for i in chosen], UNLABELLED_BATCH, shuffle)

    def _step(
        self, batch: Batch, levels: Sequence[tuple[float, Masks]], penalty: Penalty | None, labelled: bool
    ) -> float:
        """Take one step and return its loss."""
        self.optimizer.zero_grad()
        taught = None
        if self.teacher is not None:
            with torch.no_grad(), computing(self.options.precision):
                taught = self.data.predict(self.teacher, batch)
        share = 0.0 if taught is None else self.options.distillation if labelled else 1.0
        total = 0.0
        for weight, masks in levels:
            with computing(self.options.precision):
                forward = MaskedModel(self.model, masks, self.options.masked_gradients)
                prediction = self.data.predict(forward, batch)
            loss = torch.zeros(())
            if share < 1.0:
                loss = loss + (1.0 - share) * self.data.loss(prediction, batch)
            if taught is not None:
                loss = loss + share * self.data.distillation(prediction, taught)
            (weight * loss).backward()
            total += weight * float(loss.detach())
        if penalty is not None:
            extra = penalty(self.model)
            extra.backward()
            total += float(extra.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        return total

    def state(self) -> Tensors:
        """Return what a resumed phase needs besides its weights: the optimizer's moments by name, and the steps done."""
        found = {"done": torch.tensor(self.done)}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = value
        return found

    def restore(self, state: Tensors) -> None:
        """Go on from a state."""
        self.done = int(state["done"])
        for name, parameter in self.model.named_parameters():
            keys = [k for k in state if k.rpartition("/")[0] == name]
            if keys:
                self.optimizer.state[parameter] = {k.rpartition("/")[2]: state[k].clone() for k in keys}
