"""What a checkpoint or a bundle asks of a device: its matrices at each level, and the frequencies that its levels name."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rt3_tvm.energy.latency import DENSE_GROUP, MatrixLoad, at_density
from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import FLOAT32
from rt3_tvm.pattern import SparseMatrix
from rt3_tvm.runtime.check import read_metadata

if TYPE_CHECKING:
    from rt3_tvm.checkpoint import Checkpoint

SMALLEST = 32
"""Linear layers with fewer rows or columns are heads: what they take counts with everything but the linear layers."""


@dataclass(frozen=True)
class LevelFacts:
    """One level: its matrices, the frequency it names in Hz (0: none), its accuracy where that is known."""

    loads: tuple[MatrixLoad, ...]
    density: float
    frequency_hz: float = 0.0
    accuracy: float | None = None


@dataclass(frozen=True)
class ModelFacts:
    """A model: its levels, densest first; ``backbone`` is None where no block was pruned; ``tokens`` 0 where not compiled."""

    path: str
    name: str
    levels: tuple[LevelFacts, ...]
    backbone: LevelFacts | None = None
    dense_accuracy: float | None = None
    accuracy_source: str = "unknown"
    tokens: int = 0

    @property
    def dense(self) -> LevelFacts:
        """The model with no weight removed."""
        return LevelFacts(at_density(self.levels[0].loads, 1.0), 1.0, accuracy=self.dense_accuracy)


def read_facts(path: Path) -> ModelFacts:
    """Return the facts of a checkpoint (a directory) or a bundle (a file).

    Raises
    ------
    Rt3Error
        Neither a sound checkpoint nor a bundle.
    """
    if not path.exists():
        raise Rt3Error(f"no such checkpoint or bundle: '{path}'")
    if not path.is_dir():
        return _bundle_facts(path)
    from rt3_tvm.checkpoint import Checkpoint

    return checkpoint_facts(Checkpoint.load(path), str(path))


def checkpoint_facts(checkpoint: "Checkpoint", path: str = "") -> ModelFacts:
    """Return the facts of a checkpoint; ``path`` is what messages call it."""
    from torch import nn

    from rt3_tvm import model as models

    modules = models.build(checkpoint.description).named_modules()
    lookups = {f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)}
    kept_dense = [
        MatrixLoad(int(w.shape[0]), math.prod(w.shape[1:]))
        for name in checkpoint.skipped
        if (w := checkpoint.weights[name]).ndim > 1 and min(w.shape[0], math.prod(w.shape[1:])) >= SMALLEST
    ]

    def load_of(name: str, m: SparseMatrix, density: float) -> MatrixLoad:
        rows, cols = m.backbone.shape
        return MatrixLoad(rows, cols, density, m.patterns.shape.group, lookup=name in lookups)

    levels = []
    for level in checkpoint.levels:
        loads = [load_of(name, m, m.density) for name, m in level.matrices.items()]
        levels.append(LevelFacts((*loads, *kept_dense), level.density, level.frequency_hz, level.accuracy))
    first = checkpoint.levels[0].matrices
    backbone = None
    if any(m.backbone.density < 1.0 for m in first.values()):
        loads = [load_of(name, m, m.backbone.density) for name, m in first.items()]
        kept = sum(m.weights * m.density for m in loads) / sum(m.weights for m in loads)
        backbone = LevelFacts((*loads, *kept_dense), kept)
    facts = checkpoint.facts
    return ModelFacts(
        path,
        str(checkpoint.description["class"]),
        tuple(levels),
        backbone,
        facts.get("dense_accuracy"),
        str(facts.get("accuracy_source", "unknown")),
    )


def _bundle_facts(path: Path) -> ModelFacts:
    metadata: dict[str, Any] = read_metadata(path)
    levels = []
    for i, row in enumerate(metadata["levels"]):
        loads = tuple(
            _load_at(m["shape"], m["levels"][i]) for m in metadata["matrices"].values() if min(m["shape"]) >= SMALLEST
        )
        levels.append(LevelFacts(loads, row["density"], row["frequency_hz"]))
    return ModelFacts(str(path), metadata["model"]["class"], tuple(levels), tokens=max(metadata["lengths"]))


def _load_at(shape: list[int], level: dict[str, Any]) -> MatrixLoad:
    """Return a matrix of a bundle at one level."""
    dtype = level.get("dtype", FLOAT32)
    return MatrixLoad(shape[0], shape[1], level["density"], level["group"] or DENSE_GROUP, dtype=dtype)
