"""Level 1: columns of block rows are removed, with training; what remains is the backbone.

Reweighted group lasso draws whole columns towards zero before they are cut. Source of the method: arXiv 2009.08065
(block-structured pruning), arXiv 0711.1612 (reweighting).
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

import numpy as np
import torch

from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import LinearLayer
from rt3_tvm.pattern import Backbone, Floats, as_matrix, cut_backbone

EPSILON = 1e-3
"""Keeps the weight of a group that is nearly zero finite, against the mean norm of its matrix."""


class GroupLasso:
    """The penalty: the sum over groups (a column of a block row) of a weight times the norm.

    Parameters
    ----------
    strength
        Lambda. RT3's constant is 1e-4.
    """

    def __init__(self, layers: Sequence[LinearLayer], block_rows: int, strength: float) -> None:
        self.layers, self.block_rows, self.strength = layers, block_rows, strength
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
        rest = -weight.shape[0] % self.block_rows
        padded = torch.nn.functional.pad(weight, (0, 0, 0, rest))
        return torch.sqrt(padded.reshape(-1, self.block_rows, weight.shape[1]).square().sum(1) + 1e-12)


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
    block_rows: int,
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
        found[layer.name] = cut_backbone(weight, part * ratios[layer.name], block_rows, layer.transposed, rng)
    return found
