"""Level 1: columns of block rows are removed, with training; what remains is the backbone.

Reweighted group lasso draws whole columns towards zero before they are cut. Source of the method: arXiv 2009.08065
(block-structured pruning), arXiv 0711.1612 (reweighting).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import torch

from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import LinearLayer
from rt3_tvm.pattern import Backbone, Floats, PatternShape, as_matrix, cut_backbone

EPSILON = 1e-3
"""Keeps the weight of a group that is nearly zero finite, against the mean norm of its matrix."""


@dataclass(frozen=True)
class Blocks:
    """What block pruning removes at once: columns of so many rows, as many beside each other as patterns of a shape keep."""

    rows: int
    shape: PatternShape

    def adjacent(self, layer: LinearLayer) -> int:
        """Return how many columns of a matrix are removed together."""
        return self.shape.fitted(*layer.shape).adjacent


class GroupLasso:
    """The penalty: the sum over groups (adjacent columns of a block row) of a weight times the norm.

    Parameters
    ----------
    strength
        Lambda. RT3's constant is 1e-4.
    """

    def __init__(self, layers: Sequence[LinearLayer], blocks: Blocks, strength: float) -> None:
        self.layers, self.blocks, self.strength = layers, blocks, strength
        self.weights: dict[str, torch.Tensor] = {}

    def reweight(self, model: torch.nn.Module) -> None:
        """Weigh each group by the inverse of its norm: small ones are drawn to zero, large ones are left alone."""
        with torch.no_grad():
            for layer in self.layers:
                norms = self._norms(model.get_parameter(layer.name), layer)
                mean = norms.mean()
                self.weights[layer.name] = mean / (norms + EPSILON * mean)

    def __call__(self, model: torch.nn.Module) -> torch.Tensor:
        """Return the penalty."""
        parts = [
            (self.weights[layer.name] * self._norms(model.get_parameter(layer.name), layer)).sum()
            for layer in self.layers
        ]
        return self.strength * torch.stack(parts).sum()

    def _norms(self, stored: torch.Tensor, layer: LinearLayer) -> torch.Tensor:
        """Return the norm of every group, (block rows, cols)."""
        flat = stored.flatten(1)
        weight = flat.T if layer.transposed else flat  # (rows, cols)
        rest, adjacent = -weight.shape[0] % self.blocks.rows, self.blocks.adjacent(layer)
        padded = torch.nn.functional.pad(weight, (0, 0, 0, rest))
        grouped = padded.reshape(-1, self.blocks.rows, weight.shape[1] // adjacent, adjacent)
        return torch.sqrt(grouped.square().sum((1, 3)) + 1e-12)


def ratios_of(layers: Sequence[LinearLayer], ratio: float, by_glob: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the ratio of each matrix: the last glob that matches its name, else the common one.

    Raises
    ------
    Rt3Error
        A glob matches no matrix.
    """
    ratios = dict.fromkeys((layer.name for layer in layers), ratio)
    for glob, own in by_glob:
        names = [n for n in ratios if fnmatch(n, glob)]
        if not names:
            raise Rt3Error(
                f"`block_sparsity_of` {glob}={own:g}: no matrix has such a name: {', '.join(sorted(ratios))}"
            )
        ratios |= dict.fromkeys(names, own)
    return ratios


def cut_backbones(
    layers: Sequence[LinearLayer],
    weights: Mapping[str, Floats],
    ratios: Mapping[str, float],
    blocks: Blocks,
    part: float = 1.0,
    seed: int | None = None,
) -> dict[str, Backbone]:
    """Return the backbone of every matrix, this part of the way to its ratio.

    Parameters
    ----------
    seed
        Takes columns at random, to compare with; None: those of the largest norm.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    found = {}
    for layer in layers:
        weight = as_matrix(weights[layer.name], layer.transposed)
        found[layer.name] = cut_backbone(
            weight, part * ratios[layer.name], blocks.rows, layer.transposed, rng, blocks.adjacent(layer)
        )
    return found
