"""Task ``sts``: how similar two sentences are, by the cosine of their mean embeddings, against people's scores of 0 to 5."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from rt3_tvm.errors import Rt3Error
from rt3_tvm.tasks.base import Batch, Forward, Prediction, digest_of, read_lines
from rt3_tvm.tasks.sentences import batches_by_length, distil_hidden, hidden_states, load_tokenizer, padded

BATCH, LONGEST = 32, 64
LONGEST_UNLABELLED = 32
"""Tokens of an unlabelled sentence: those of the task are shorter still."""
FILES = {"train": "sts-train.csv", "valid": "sts-dev.csv", "test": "sts-test.csv"}
SCORE, FIRST, SECOND = 4, 5, 6
"""Columns of STS-B's files: tab-separated, not quoted."""
TOP_SCORE = 5.0


@dataclass(frozen=True)
class Pair:
    """Two sentences and their score in [0, 1]."""

    first: str
    second: str
    score: float


class SimilarityData:
    """Pairs of sentences, tokenised once."""

    def __init__(self, pairs: dict[str, list[Pair]], tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.scores = {split: torch.tensor([p.score for p in rows]) for split, rows in pairs.items()}
        self.ids = {
            split: (self._encode([p.first for p in rows]), self._encode([p.second for p in rows]))
            for split, rows in pairs.items()
        }

    def _encode(self, sentences: list[str]) -> list[list[int]]:
        return list(self.tokenizer(sentences, truncation=True, max_length=LONGEST)["input_ids"])

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Return batches of ``tokens`` (all first sentences, then all second ones) and ``scores`` (batch,)."""
        first, second = self.ids[split]
        lengths = [max(len(a), len(b)) for a, b in zip(first, second, strict=True)]
        for part in batches_by_length(lengths, BATCH, generator):
            ids = [first[i] for i in part] + [second[i] for i in part]
            yield {"tokens": padded(self.tokenizer, {"input_ids": ids}), "scores": self.scores[split][part]}

    def unlabelled(self, sentences: list[str], size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Return batches of ``tokens`` of single sentences."""
        ids = [i[:LONGEST_UNLABELLED] for i in self._encode(sentences)]
        for part in batches_by_length([len(i) for i in ids], size, generator):
            yield {"tokens": padded(self.tokenizer, {"input_ids": [ids[i] for i in part]})}

    def predict(self, forward: Forward, batch: Batch) -> Prediction:
        """Return ``embeddings`` (sentences, features), each of length 1, and ``hidden`` (layers, tokens, features)."""
        tokens = batch["tokens"]
        outputs, hidden = hidden_states(forward, tokens)
        weights = tokens["attention_mask"][..., None].to(hidden.dtype)
        mean = (outputs["last_hidden_state"] * weights).sum(1) / weights.sum(1)
        return {"embeddings": functional.normalize(mean, dim=-1), "hidden": hidden}

    def loss(self, prediction: Prediction, batch: Batch) -> torch.Tensor:
        """Return the squared error of the cosines."""
        return functional.mse_loss(_cosines(prediction), batch["scores"])

    def distillation(self, prediction: Prediction, teacher: Prediction) -> torch.Tensor:
        """Return how far the embeddings, their similarities within the batch, and the hidden states are from the teacher's."""
        student, taught = prediction["embeddings"], teacher["embeddings"]
        angle = (1.0 - (student * taught).sum(-1)).mean()
        similarities = functional.mse_loss(student @ student.T, taught @ taught.T)
        return angle + similarities + distil_hidden(prediction, teacher)

    def evaluate(self, forward: Forward, split: str) -> dict[str, float]:
        """Return Spearman's correlation."""
        from scipy.stats import spearmanr

        cosines, scores = [], []
        with torch.no_grad():
            for batch in self.batches(split):
                cosines += _cosines(self.predict(forward, batch)).tolist()
                scores += batch["scores"].tolist()
        return {"accuracy": float(spearmanr(cosines, scores).statistic)}

    def fingerprint(self) -> str:
        """Return a SHA-256 of the data."""
        return digest_of(self.ids, {split: scores.tolist() for split, scores in self.scores.items()})


def _cosines(prediction: Prediction) -> torch.Tensor:
    first, second = prediction["embeddings"].chunk(2)
    return (first * second).sum(-1)


def load_similarity(data: Path | None, _model: torch.nn.Module, source: Path | None) -> SimilarityData:
    """Return the pairs of a folder with STS-B's files."""
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        raise Rt3Error("task sts needs scipy: pip install 'rt3-tvm[search]'") from None
    if data is None:
        raise Rt3Error(f"task sts needs `data`: a folder with {', '.join(FILES.values())}")
    pairs = {split: _read_pairs(data / name) for split, name in FILES.items()}
    return SimilarityData(pairs, load_tokenizer("sts", source))


def _read_pairs(path: Path) -> list[Pair]:
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split("\t")
        try:
            score = float(cells[SCORE])
            pairs.append(Pair(cells[FIRST], cells[SECOND], score / TOP_SCORE))
        except (IndexError, ValueError) as error:
            raise Rt3Error(
                f"{path}:{number}: expected 7 columns separated by tabs, the fifth a score, then two sentences"
            ) from error
        if not 0.0 <= score <= TOP_SCORE:
            raise Rt3Error(f"{path}:{number}: score {score:g} is outside 0 to {TOP_SCORE:g}")
    if not pairs:
        raise Rt3Error(f"{path}: no pairs")
    return pairs
