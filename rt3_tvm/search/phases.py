"""The phases of training: dense, block pruning, the backbone, levels jointly or alone."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rt3_tvm.checkpoint import Level, flatten_levels, unflatten_levels
from rt3_tvm.export import LinearLayer
from rt3_tvm.pattern import Backbone
from rt3_tvm.search.block_pruning import Blocks, GroupLasso, cut_backbones
from rt3_tvm.search.phase import Phase, Trained, ended
from rt3_tvm.search.store import Facts, Tensors, put, take
from rt3_tvm.search.training import Masks, masks_of, seed_of

Cut = Callable[[dict[str, Any], float], tuple[Level, ...]]
"""Cuts the levels from weights, a part of the way from the backbone to their sparsity."""


def train_dense(t: Trained) -> None:
    """Train without masks, keep the epoch that validates best, and make it the teacher."""
    if ended(t, "dense") is None:
        phase = Phase(t, "dense", t.options.epochs[0], teacher=False)
        for number in range(phase.first, phase.epochs):
            accuracy = phase.epoch(number, [(1.0, {})], score=lambda: t.validate({})["accuracy"])
            phase.keep_best(accuracy)
            phase.end_epoch()
        phase.take_best()
        phase.facts["valid"] = t.validate({})
        phase.end()
    t.teacher = copy.deepcopy(t.model).eval().requires_grad_(False)


def whole(backbones: dict[str, Backbone]) -> Masks:
    """Return the masks that keep all that block pruning left, as the model stores the weights."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(b.stored(b.mask().astype(np.float32))))
        for name, b in backbones.items()
    }


def prune_blocks(t: Trained, layers: Sequence[LinearLayer], ratios: dict[str, float]) -> dict[str, Backbone]:
    """Train with the group lasso or under a rising ratio, and return the backbone that is cut at the end."""
    o = t.options
    found, blocks = ended(t, "blocks"), Blocks(o.block_rows, o.shape)
    if found is None:
        phase = Phase(t, "blocks", o.epochs[1] if o.block in ("lasso", "gradual") else 0)
        lasso = GroupLasso(layers, blocks, o.lasso) if o.block == "lasso" else None
        for number in range(phase.first, phase.epochs):
            masks: Masks = {}
            if lasso:
                lasso.reweight(t.model)
            else:
                rising = cut_backbones(layers, t.weights(), ratios, blocks, risen(number, phase.epochs))
                masks = whole(rising)
            phase.epoch(number, [(1.0, masks)], lasso)
            phase.end_epoch()
        seed = seed_of(o.seed, "random blocks") if o.block == "random" else None
        backbones = cut_backbones(layers, t.weights(), ratios, blocks, seed=seed)
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
            phase.keep_best(accuracy)
        tensors, phase.facts["levels"] = _tables_of(levels)
        phase.extra = put(take(phase.extra, "best/"), "best/") | put(tensors, "levels/")
        phase.end_epoch()
    phase.take_best()
    tensors, phase.facts["levels"] = _tables_of(levels)
    phase.end(tensors)
    return levels


def _tables_of(levels: tuple[Level, ...]) -> tuple[Tensors, Facts]:
    patterns, matrices = flatten_levels(levels)
    rows = [{"sparsity": lv.sparsity, "frequency_hz": lv.frequency_hz} for lv in levels]
    return {n: torch.from_numpy(v) for n, v in patterns.items()}, {"matrices": matrices, "levels": rows}


def _levels_of(table: Facts, tensors: Tensors) -> tuple[Level, ...]:
    return unflatten_levels(table, {n: v.numpy() for n, v in tensors.items()})
