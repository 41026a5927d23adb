"""What tokens that fill the compiled length do to a model, and what has to be done about it; seen by running both."""

from dataclasses import dataclass
from enum import Enum
from typing import Self

import torch

from rt3_tvm.export.program import ExportForm, export, outputs_of
from rt3_tvm.model import PRESENT, InputSpec, OutputSpec, example_inputs, has_length, inputs_of, max_length, quiet

TRIES = 3
"""Random inputs that are tried: a token that happens to be read like padding must not hide a leak."""
TOLERANCE = 1e-4
"""Of the largest value: PyTorch's own rounding differs by the length, by less than a tenth of this."""
LENGTH, FILLED = 8, 3
"""Tokens of the longer input that is tried, and how many of them only fill it."""


class Padding(Enum):
    """How inputs that are shorter than what was compiled are served."""

    MASKED = "masked"
    """Tokens that pad are masked out, and that is enough."""
    ABSENT = "absent"
    """They are also embedded as zeros, and the last token is the last one that the caller gave (MobileBERT, SigLIP's text)."""
    EXACT = "exact"
    """Not at all: outputs depend on the length in another way (FNet mixes all tokens)."""


@dataclass(frozen=True)
class Interface:
    """What a model takes and gives, and how it serves shorter inputs; the same for every length."""

    specs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    padding: Padding

    @classmethod
    def of(cls, model: torch.nn.Module) -> Self:
        """Return the interface of a model; small inputs are run to see it."""
        specs = inputs_of(model)
        outputs = outputs_of(model, specs)
        return cls(specs, outputs, padding_of(model, specs, outputs))

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The inputs of the graph: those of the model, and what the runtime adds."""
        return (*self.specs, PRESENT) if self.padding is Padding.ABSENT else self.specs


def padding_of(model: torch.nn.Module, specs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]) -> Padding:
    """Return how a model serves shorter inputs: the first way by which real tokens keep their values."""
    length = min(LENGTH, max_length(model))
    if not has_length(specs) or length < 2 or not _shows(model, ExportForm(model), specs, outputs, length):
        return Padding.MASKED
    absent = (*specs, PRESENT)
    exported = export(model, 1, length, absent).module()
    return Padding.EXACT if _shows(model, exported, absent, outputs, length) else Padding.ABSENT


def _shows(
    model: torch.nn.Module,
    form: torch.nn.Module,
    specs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    length: int,
) -> bool:
    """Return whether real tokens get other values in a form of the model when padding follows them."""
    generator, real = torch.Generator().manual_seed(0), max(1, length - FILLED)
    for _ in range(TRIES):
        long = example_inputs(specs, 1, length)
        for spec in (s for s in specs if not s.mask):
            long[spec.name] = torch.randint(0, spec.limit, (1, length), generator=generator)
        short = {s.name: long[s.name][:, :real] for s in specs if not s.internal}
        for spec in specs:
            long[spec.name][:, real:] = spec.fill
        with torch.no_grad(), quiet():
            want, got = ExportForm(model)(**short), form(**long)
        if any(_differ(want[o.name], got[o.name]) for o in outputs):
            return True
    return False


def _differ(want: torch.Tensor, got: torch.Tensor) -> bool:
    """Return whether an output of fewer tokens differs from the part of a longer one that belongs to them."""
    part = got[tuple(slice(0, n) for n in want.shape)]
    return not bool((part - want).abs().max() <= TOLERANCE * max(1e-6, float(want.abs().max())))
