"""Task ``lm``: the next word of plain text, as the PyTorch tutorial and RT3 do it: words by white space, stretches of 35."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional

from rt3_tvm import rt3
from rt3_tvm.errors import Rt3Error
from rt3_tvm.tasks.base import Batch, Forward, Prediction, digest_of, read_lines
from rt3_tvm.transformer_lm import TransformerLM

LENGTH, BATCH = rt3.STRETCH, rt3.BATCH
"""Words of a stretch, stretches of a batch."""
UNKNOWN, END = "<unk>", "<eos>"
FILES = {"train": "train.txt", "valid": "valid.txt", "test": "test.txt"}


class LanguageModelData:
    """Texts as ids of their words, (stretches, 36) a split: 35 words and the one after each.

    The vocabulary are the most frequent words of the training text; the others are <unk>.
    """

    def __init__(self, texts: dict[str, list[str]], vocabulary: int) -> None:
        counts = Counter(w for w in texts["train"] if w not in (UNKNOWN, END))
        words = [UNKNOWN, END, *(w for w, _ in counts.most_common(vocabulary - 2))]
        ids = {w: i for i, w in enumerate(words)}
        self.splits = {}
        for split, text in texts.items():
            stretches = (len(text) - 1) // LENGTH
            if stretches < 1:
                raise Rt3Error(f"task lm: the {split} text has {len(text)} words, it takes at least {LENGTH + 1}")
            tokens = torch.tensor([ids.get(w, 0) for w in text])
            starts = torch.arange(stretches) * LENGTH
            self.splits[split] = tokens[starts[:, None] + torch.arange(LENGTH + 1)]

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Return batches of ``ids`` (batch, 36)."""
        data = self.splits[split]
        order = torch.arange(len(data)) if generator is None else torch.randperm(len(data), generator=generator)
        for part in order.split(BATCH):
            yield {"ids": data[part]}

    def unlabelled(self, sentences: list[str], size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Refuse: text needs no labels here."""
        raise Rt3Error("task lm learns from plain text anyway: put it into train.txt, not `unlabelled`")

    def predict(self, forward: Forward, batch: Batch) -> Prediction:
        """Return ``logits`` (batch, 35, vocabulary)."""
        return {"logits": forward(input_ids=batch["ids"][:, :-1])["logits"]}

    def loss(self, prediction: Prediction, batch: Batch) -> torch.Tensor:
        """Return the cross entropy of the next words."""
        return functional.cross_entropy(prediction["logits"].flatten(0, 1), batch["ids"][:, 1:].flatten())

    def distillation(self, prediction: Prediction, teacher: Prediction) -> torch.Tensor:
        """Return the divergence from the teacher's distribution."""
        student, other = (
            functional.log_softmax(p["logits"].flatten(0, 1).float(), dim=-1) for p in (prediction, teacher)
        )
        return functional.kl_div(student, other, log_target=True, reduction="batchmean")

    def evaluate(self, forward: Forward, split: str) -> dict[str, float]:
        """Return next-token accuracy and perplexity."""
        right, entropy, count = 0, 0.0, 0
        with torch.no_grad():
            for batch in self.batches(split):
                prediction = self.predict(forward, batch)
                targets = batch["ids"][:, 1:]
                right += int((prediction["logits"].argmax(-1) == targets).sum())
                entropy += float(self.loss(prediction, batch)) * targets.numel()
                count += targets.numel()
        return {"accuracy": right / count, "perplexity": math.exp(min(entropy / count, 700.0))}

    def fingerprint(self) -> str:
        """Return a SHA-256 of the data."""
        return digest_of({split: ids.tolist() for split, ids in self.splits.items()})


def load_language_model(data: Path | None, model: torch.nn.Module, _source: Path | None) -> LanguageModelData:
    """Return the texts of a folder (train.txt, valid.txt, test.txt), or of Python's own documentation."""
    if not isinstance(model, TransformerLM):
        raise Rt3Error(
            f"task lm trains RT3's language model (random-lm, random-lm-small, random-lm-tiny), not {type(model).__name__}"
        )
    texts = _python_texts() if data is None else {s: _words(read_lines(data / f)) for s, f in FILES.items()}
    return LanguageModelData(texts, model.config.vocab_size)


def _words(lines: list[str]) -> list[str]:
    return [w for line in lines if line.strip() for w in (*line.split(), END)]


def _python_texts() -> dict[str, list[str]]:
    """Return the help topics of the standard library: every tenth for validation, every tenth for the test."""
    from pydoc_data.topics import topics

    texts: dict[str, list[str]] = {split: [] for split in FILES}
    for i, name in enumerate(sorted(topics)):
        split = {0: "valid", 5: "test"}.get(i % 10, "train")
        texts[split] += _words(topics[name].lower().splitlines())
    return texts
