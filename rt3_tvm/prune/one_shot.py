"""One-shot pruning by magnitude, no training: block pruning to the backbone, then a pattern set per matrix and level."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch

from rt3_tvm import model as models
from rt3_tvm.checkpoint import TOKENIZER_FILES, Checkpoint, Level, check_finite
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import LinearLayer, embeddings_in, export, linears_in
from rt3_tvm.pattern import Backbone, Ints, PatternRecipe, as_matrix, cut_backbone, cut_patterns
from rt3_tvm.prune.options import PruneOptions
from rt3_tvm.prune.quad_order import quad_order
from rt3_tvm.trials import check_exported

SMALLEST = 32
"""Matrices with fewer rows or columns than this stay dense: heads, whose every weight counts and costs nothing."""


def prune_one_shot(model: torch.nn.Module, options: PruneOptions, source: Path | None = None) -> Checkpoint:
    """Return the checkpoint of a model pruned once, by magnitude.

    Parameters
    ----------
    model
        In evaluation mode; it is not changed.
    source
        Directory the model came from, whose tokenizer files travel along.
    """
    weights = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    check_finite(weights, "model")
    found = find_prunable(model, options.exclude, options.embeddings)
    skipped = found.skipped
    tables = quad_tables(weights, found.layers, options)
    backbones: dict[str, Backbone] = {}
    for layer in found.layers:
        weight = as_matrix(weights[layer.name], layer.transposed)
        adjacent = options.shape.fitted(*layer.shape).adjacent
        backbones[layer.name] = cut_backbone(
            weight,
            options.block_sparsity,
            options.block_rows,
            layer.transposed,
            adjacent=adjacent,
            table=tables.get(layer.name),
        )
    if not backbones:
        reasons = "; ".join(f"{n}: {r}" for n, r in skipped.items()) or "none was found in the graph"
        raise Rt3Error(f"no linear layer is left to prune: {reasons}")
    frequencies = options.frequencies or (0.0,) * len(options.sparsity)
    levels = tuple(
        replace(cut_level(weights, backbones, s, options), frequency_hz=hz)
        for s, hz in zip(options.sparsity, frequencies, strict=True)
    )
    return Checkpoint(models.describe(model), weights, levels, skipped, tokenizer_files(source))


def quad_tables(
    weights: dict[str, np.ndarray], layers: Iterable[LinearLayer], options: PruneOptions
) -> dict[str, Ints]:
    """Return by name an order of the columns of each matrix, where one is asked for: one for all that read the same tensor."""
    if not options.order_columns:
        return {}
    readers: dict[tuple[str, int], list[LinearLayer]] = {}
    for layer in layers:
        if options.shape.fitted(*layer.shape).adjacent > 1:
            readers.setdefault((layer.reads or layer.name, layer.shape[1]), []).append(layer)
    tables: dict[str, Ints] = {}
    density = 1.0 - options.sparsity[len(options.sparsity) // 2]
    for together in readers.values():
        oriented = [as_matrix(weights[layer.name], layer.transposed) for layer in together]
        table = quad_order(oriented, options.shape.group, density, options.seed)
        tables |= dict.fromkeys((layer.name for layer in together), table)
    return tables


def tokenizer_files(source: Path | None) -> tuple[Path, ...]:
    """Return the files of a model's directory that belong to its tokenizer."""
    return tuple(source / n for n in TOKENIZER_FILES if (source / n).is_file()) if source else ()


@dataclass(frozen=True)
class Prunable:
    """The matrices of a model that are pruned, why the others stay dense, and which are only looked up, row by row."""

    layers: tuple[LinearLayer, ...]
    skipped: dict[str, str]
    lookups: frozenset[str]


TRIED_LENGTH = 8
"""Tokens of the inputs on which the exported graph is compared with the model."""


def find_prunable(model: torch.nn.Module, exclude: tuple[str, ...], embeddings: bool) -> Prunable:
    """Return the matrices of a model that may be pruned: linear layers, with ``embeddings`` also the tables of tokens.

    Raises
    ------
    Rt3Error
        The model cannot be exported, or its exported graph gives other values: it could be trained, but not compiled.
    """
    program = export(model, 1, TRIED_LENGTH)
    check_exported(model, program, 1, TRIED_LENGTH)
    linears, tables = linears_in(program), embeddings_in(program)
    tied = {layer.name for layer in linears} & {layer.name for layer in tables}
    found = {layer.name: layer for layer in [*linears, *(tables if embeddings else [])]}
    reasons = {name: _why_dense(layer, exclude, () if embeddings else tied) for name, layer in found.items()}
    return Prunable(
        tuple(layer for name, layer in found.items() if not reasons[name]),
        {name: reason for name, reason in reasons.items() if reason},
        frozenset(layer.name for layer in tables) - tied,
    )


def _why_dense(layer: LinearLayer, exclude: Iterable[str], tied: Container[str]) -> str:
    """Return why a matrix stays dense; an empty text where it does not."""
    if any(fnmatch(layer.name, glob) for glob in exclude):
        return "excluded"
    if min(layer.shape) < SMALLEST:
        return f"{layer.shape[0]}x{layer.shape[1]} is smaller than {SMALLEST}x{SMALLEST}"
    if layer.name in tied:
        return "tied to the embedding of tokens, which is pruned with --embeddings only"
    return ""


def cut_level(weights: dict, backbones: dict[str, Backbone], sparsity: float, options: PruneOptions) -> Level:
    """Return a level cut from weights by magnitude, within the backbones."""
    matrices = {}
    for name, backbone in backbones.items():
        within = min(1.0, (1.0 - sparsity) / backbone.density)
        recipe = PatternRecipe(options.shape.fitted(*backbone.shape), options.patterns, seed=options.seed)
        matrices[name] = cut_patterns(backbone.oriented(weights[name]), backbone, recipe, within)
    return Level(sparsity, matrices)
