"""Sentences for encoders: the tokenizer of a model, batches of one length, and the hidden states a student learns from."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rt3_tvm.errors import Rt3Error
from rt3_tvm.tasks.base import Forward, Prediction, read_lines

POOL = 8
"""Shuffled batches that are sorted by length together: little is padded, and the order stays random."""
PADDED_TO = 8
"""Lengths are padded to multiples of this, so that PyTorch builds its kernels for a few shapes, not for each batch anew."""
FEWEST_WORDS = 3
"""Words of a sentence of unlabelled text; shorter ones are headings."""


def load_tokenizer(task: str, source: Path | None) -> Any:
    """Return the tokenizer of a model's directory."""
    from transformers import AutoTokenizer

    if source is None:
        raise Rt3Error(f"task {task} needs a model with a tokenizer: minilm, or a local Hugging Face directory")
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Rt3Error(f"'{source}' has no tokenizer: {str(error).splitlines()[0]}") from error


def padded(tokenizer: Any, encoded: dict[str, list[list[int]]]) -> dict[str, torch.Tensor]:
    """Return encoded texts as tensors (batch, length)."""
    return dict(tokenizer.pad(encoded, return_tensors="pt", pad_to_multiple_of=PADDED_TO))


def batches_by_length(lengths: Sequence[int], size: int, generator: torch.Generator | None) -> Iterator[list[int]]:
    """Return batches of indices; without a generator in order of length, with one shuffled, lengths alike within a batch."""
    if generator is None:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        yield from (order[i : i + size] for i in range(0, len(order), size))
        return
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    for start in range(0, len(shuffled), POOL * size):
        pool = sorted(shuffled[start : start + POOL * size], key=lengths.__getitem__)
        parts = [pool[i : i + size] for i in range(0, len(pool), size)]
        for i in torch.randperm(len(parts), generator=generator).tolist():
            yield parts[i]


def hidden_states(forward: Forward, tokens: dict[str, torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """Return a model's outputs, and its hidden states of the real tokens alone, (layers, tokens, features)."""
    outputs = forward(**tokens, output_hidden_states=True)
    real = tokens["attention_mask"].bool()
    return outputs, torch.stack([h[real] for h in outputs["hidden_states"][1:]])


def distil_hidden(prediction: Prediction, teacher: Prediction) -> torch.Tensor:
    """Return the mean squared error of the hidden states against the variance of the teacher's, layer by layer."""
    student, taught = prediction["hidden"], teacher["hidden"]
    error = (student - taught).square().mean((1, 2))
    return (error / taught.var((1, 2))).mean()


def read_sentences(path: Path) -> list[str]:
    """Return the sentences of a plain text, without headings; WikiText's marks (``@-@``) become what they stand for.

    Raises
    ------
    Rt3Error
        It cannot be read, or has no sentence.
    """
    found = []
    for line in read_lines(path):
        text = re.sub(r" @(.)@ ", r"\1", line.strip())
        if text.startswith("= "):
            continue
        found += [s for s in re.split(r"(?<=[.!?;]) +", text) if len(s.split()) >= FEWEST_WORDS]
    if not found:
        raise Rt3Error(f"{path}: no sentence of {FEWEST_WORDS} words or more")
    return found
