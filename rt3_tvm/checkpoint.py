"""Checkpoints: one shared weight, a backbone, and for each level a pattern set and an assignment per matrix.

On disk a directory: ``weights.safetensors``, ``patterns.safetensors``, ``checkpoint.json``, and the tokenizer's files as
they came. No pickle. Every tensor has its shape and SHA-256 in the JSON, which has its own, checked on load.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rt3_tvm import model as models
from rt3_tvm import schema
from rt3_tvm.checkpoint_format import check_matrix, check_table, read_tensors, sealed_table, stamp
from rt3_tvm.errors import JobError, Rt3Error, reason
from rt3_tvm.files import open_regular, written_whole_folder
from rt3_tvm.pattern import Backbone, PatternSet, PatternShape, SparseMatrix

FORMAT_VERSION = 3
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "merges.txt",
    "vocab.json",
)
_WEIGHTS, _PATTERNS, _TABLE = "weights.safetensors", "patterns.safetensors", "checkpoint.json"


@dataclass(frozen=True, eq=False)
class Level:
    """One operating point: the sparsity that was asked for and what every pruned matrix keeps, by weight name.

    ``frequency_hz``: the lowest frequency it is for, 0 where none was named; ``accuracy``: measured as the checkpoint's ``facts``
    say.
    """

    sparsity: float
    matrices: dict[str, SparseMatrix]
    frequency_hz: float = 0.0
    accuracy: float | None = None

    @property
    def density(self) -> float:
        """Part of the pruned matrices' weights that is kept, counted."""
        sizes = {n: m.backbone.shape[0] * m.backbone.shape[1] for n, m in self.matrices.items()}
        return sum(m.density * sizes[n] for n, m in self.matrices.items()) / sum(sizes.values())

    def energy(self, weights: dict[str, np.ndarray]) -> float:
        """Return the part of the squares of the pruned matrices' weights that is kept."""
        kept = sum(float(np.square(m.masked(weights[n]), dtype=np.float64).sum()) for n, m in self.matrices.items())
        return kept / sum(float(np.square(weights[n], dtype=np.float64).sum()) for n in self.matrices)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A pruned model.

    Parameters
    ----------
    description
        What builds the model again, see :func:`rt3_tvm.model.describe`.
    weights
        The shared weights by name, float32 (buffers keep their dtype). Never masked: each level masks them.
    levels
        Densest first.
    skipped
        Linear layers that stay dense, with the reason.
    tokenizer
        Files of the tokenizer, copied along.
    facts
        How it was made, as JSON; a compiled model does not depend on it.
    """

    description: dict[str, Any]
    weights: dict[str, np.ndarray]
    levels: tuple[Level, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    tokenizer: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    _stamps: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything a compiled model depends on."""
        patterns, matrices = flatten_levels(self.levels)
        tensors = {n: self._stamps.get(n) or stamp(np.ascontiguousarray(v)) for n, v in self.weights.items()}
        facts = [self.description, matrices, tensors, {n: stamp(v) for n, v in patterns.items()}]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def torch_model(self, level: int) -> torch.nn.Module:
        """Return the PyTorch model with the masks of a level applied: the reference of every numeric test."""
        if not 0 <= level < len(self.levels):
            raise Rt3Error(f"level {level}: the checkpoint has levels 0 to {len(self.levels) - 1}")
        model = self.dense_model()
        self.mask(model, level)
        return model

    def mask(self, model: torch.nn.Module, level: int) -> None:
        """Mask the weights of a model of this checkpoint, whatever level they had, in place."""
        tensors = dict(model.named_parameters(remove_duplicate=False))
        for name, matrix in self.levels[level].matrices.items():
            # In place: a weight that two layers share is masked for both. By NumPy: PyTorch would wake its threads for each.
            np.copyto(tensors[name].detach().numpy(), matrix.masked(self.weights[name]))

    def dense_model(self) -> torch.nn.Module:
        """Return the PyTorch model with its shared weights unmasked."""
        return self._model({n: v.copy() for n, v in self.weights.items()})

    def _model(self, weights: dict[str, np.ndarray]) -> torch.nn.Module:
        """Return the PyTorch model of the description with these weights.

        Raises
        ------
        Rt3Error
            The description builds no model, or one that these weights do not fit.
        """
        try:
            self._check_shapes(weights)
            model = models.build(self.description)
            model.load_state_dict({n: torch.from_numpy(v) for n, v in weights.items()}, strict=False)
        except Rt3Error:
            raise
        except Exception as error:  # a forged description can fail anywhere in transformers
            raise Rt3Error(f"the checkpoint's model and weights do not fit: {reason(error)}") from error
        known = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in weights}
        for name, parameter in model.named_parameters():
            if id(parameter) not in known:
                raise Rt3Error(f"the checkpoint's weights lack '{name}' of its model")
        return model.eval()

    def _check_shapes(self, weights: dict[str, np.ndarray]) -> None:
        """Refuse a description of a model of another size before there is memory for it."""
        for key in ("num_hidden_layers", "num_layers", "n_layers", "n_layer"):
            layers = self.description["config"].get(key)
            if isinstance(layers, int) and layers > len(weights):  # each has one at least
                raise Rt3Error(
                    f"the checkpoint's model has {key} {layers}, which its {len(weights)} weights cannot fill"
                )
        try:
            with torch.device("meta"):
                model = models.build(self.description)
        except Rt3Error:
            raise
        except Exception:  # not every class can be built without memory
            return
        for name, parameter in model.named_parameters():
            if name in weights and weights[name].shape != tuple(parameter.shape):
                raise Rt3Error(
                    f"the checkpoint's weight '{name}' is {list(weights[name].shape)}, "
                    f"its model's is {list(parameter.shape)}"
                )

    def save(self, path: str | Path) -> None:
        """Write the checkpoint: to a temporary directory beside ``path``, then renamed over it."""
        target = Path(path)
        if target.exists() and not (target / _TABLE).is_file():
            raise Rt3Error(f"'{target}' exists and is not a checkpoint: choose another `output`")
        try:
            with written_whole_folder(target) as temporary:
                self._write(temporary)
        except SafetensorError as error:
            raise JobError(f"cannot write '{target}': {error}") from error

    def _write(self, folder: Path) -> None:
        patterns, matrices = flatten_levels(self.levels)
        weights = {n: np.ascontiguousarray(v) for n, v in self.weights.items()}
        save_file(weights, folder / _WEIGHTS)
        save_file(patterns, folder / _PATTERNS)
        table = {
            "format_version": FORMAT_VERSION,
            "model": self.description,
            "levels": [
                {
                    "sparsity": lv.sparsity,
                    "density": lv.density,
                    "frequency_hz": lv.frequency_hz,
                    "accuracy": lv.accuracy,
                }
                for lv in self.levels
            ],
            "facts": self.facts,
            "matrices": matrices,
            "skipped": self.skipped,
            "tensors": {
                file: {n: stamp(v) for n, v in tensors.items()}
                for file, tensors in ((_WEIGHTS, weights), (_PATTERNS, patterns))
            },
        }
        for source in self.tokenizer:
            shutil.copyfile(source, folder / source.name)
        (folder / _TABLE).write_text(json.dumps(sealed_table(table), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Read a checkpoint and check every tensor.

        Raises
        ------
        Rt3Error
            Not a checkpoint, another format version, or a missing, resized, altered or foreign tensor, which it names.
        """
        folder = Path(path)
        try:
            with open_regular(folder / _TABLE) as file:
                table = schema.parse(file.read())
        except (OSError, ValueError) as error:
            raise Rt3Error(f"'{folder}' is not a checkpoint: no readable {_TABLE}: make one with rt3 prune") from error
        if not isinstance(table, dict) or table.get("format_version") != FORMAT_VERSION:
            version = table.get("format_version") if isinstance(table, dict) else None
            raise Rt3Error(f"'{folder}': format version {version}, this rt3 reads {FORMAT_VERSION}")
        try:
            check_table(table, (_WEIGHTS, _PATTERNS))
            weights = read_tensors(folder / _WEIGHTS, table["tensors"][_WEIGHTS])
            patterns = read_tensors(folder / _PATTERNS, table["tensors"][_PATTERNS])
            levels = unflatten_levels(table, patterns)
            for level in levels:
                for name, matrix in level.matrices.items():
                    check_matrix(name, matrix, weights[name])
            checkpoint = cls(
                table["model"],
                weights,
                levels,
                dict(table["skipped"]),
                tuple(folder / n for n in TOKENIZER_FILES if (folder / n).is_file()),
                dict(table.get("facts", {})),
            )
            checkpoint._stamps.update(table["tensors"][_WEIGHTS])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise Rt3Error(f"'{folder}': {_TABLE} is damaged: {type(error).__name__} {error}") from error
        check_finite(weights, str(folder))
        return checkpoint


def check_finite(weights: dict[str, np.ndarray], where: str) -> None:
    """Reject NaN and infinite weights by name."""
    for name, value in weights.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise Rt3Error(
                f"{where}: weight '{name}' has {int((~np.isfinite(value)).sum())} values that are not finite"
            )


def flatten_levels(levels: tuple[Level, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors of all patterns, and a table of their shapes."""
    tensors: dict[str, np.ndarray] = {}
    table: dict[str, Any] = {}
    for i, level in enumerate(levels):
        for name, m in level.matrices.items():
            s = m.patterns.shape
            row = table.setdefault(
                name,
                {
                    "shape": list(m.backbone.shape),
                    "block_rows": m.backbone.block_rows,
                    "transposed": m.backbone.transposed,
                    "levels": [],
                },
            )
            quads = {"adjacent": s.adjacent} if s.adjacent > 1 else {}  # else as it was before there were quads
            row["levels"].append({"rows": s.rows, "cols": s.cols, "group": s.group} | quads)
            tensors[f"{name}/backbone"] = np.ascontiguousarray(m.backbone.columns)
            if m.backbone.table is not None:
                tensors[f"{name}/table"] = np.ascontiguousarray(m.backbone.table)
            tensors[f"{name}/{i}/patterns"] = np.ascontiguousarray(m.patterns.columns)
            tensors[f"{name}/{i}/assignment"] = np.ascontiguousarray(m.assignment)
    return tensors, table


def unflatten_levels(table: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Level, ...]:
    """Return the levels of such tensors; ``table`` has ``matrices``, and ``levels`` with sparsity, frequency and accuracy."""
    levels = []
    for i, row in enumerate(table["levels"]):
        matrices = {}
        for name, m in table["matrices"].items():
            columns, table_of = tensors[f"{name}/backbone"], tensors.get(f"{name}/table")
            backbone = Backbone(tuple(m["shape"]), int(m["block_rows"]), columns, m["transposed"], table_of)
            shape = PatternShape(**m["levels"][i])
            patterns, assignment = tensors[f"{name}/{i}/patterns"], tensors[f"{name}/{i}/assignment"]
            matrices[name] = SparseMatrix(backbone, PatternSet(shape, patterns), assignment)
        accuracy = row.get("accuracy")
        levels.append(
            Level(
                float(row["sparsity"]),
                matrices,
                float(row.get("frequency_hz") or 0.0),
                None if accuracy is None else float(accuracy),
            )
        )
    return tuple(levels)
