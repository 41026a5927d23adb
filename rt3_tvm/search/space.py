"""The search space: for each level a sparsity, and for each matrix at it a pattern set; shrunk by what the deadline rules out."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np

from rt3_tvm.checkpoint import Level
from rt3_tvm.device import frequency_name
from rt3_tvm.energy.latency import LatencyModel, MatrixLoad
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import LinearLayer
from rt3_tvm.pattern import (
    EACH_BLOCK,
    Backbone,
    Floats,
    PatternRecipe,
    PatternShape,
    SparseMatrix,
    cut_patterns,
    most_kept,
)
from rt3_tvm.search.options import SearchOptions
from rt3_tvm.search.training import seed_of

Weights = dict[str, Floats]


@dataclass(frozen=True)
class Choice:
    """A child: for each level the index of its sparsity, and for each level and matrix the index of its recipe."""

    sparsity: tuple[int, ...]
    sets: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> str:
        """The choice as one line of JSON: the same for the same child."""
        return json.dumps([self.sparsity, self.sets], separators=(",", ":"))

    @classmethod
    def from_key(cls, key: str) -> "Choice":
        """Return the choice of a key."""
        sparsity, sets = json.loads(key)
        return cls(tuple(sparsity), tuple(tuple(s) for s in sets))


@dataclass(frozen=True, eq=False)
class Space:
    """What can be chosen, and what of it meets the deadline.

    Parameters
    ----------
    layers, backbones
        The matrices that are pruned, in one order, and what block pruning left of each by name.
    recipes
        For each matrix the pattern sets to choose from.
    grid
        Sparsities within the backbone to choose from, ascending.
    rest
        Linear layers that stay dense.
    latency, frequencies, deadline_s
        s of one inference by the matrices' loads; Hz of each level; s, 0 for none.
    """

    layers: tuple[LinearLayer, ...]
    backbones: dict[str, Backbone]
    recipes: tuple[tuple[PatternRecipe, ...], ...]
    grid: tuple[float, ...]
    lookups: frozenset[str]
    rest: tuple[MatrixLoad, ...]
    latency: LatencyModel
    frequencies: tuple[float, ...]
    deadline_s: float

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.frequencies)

    @property
    def backbone_density(self) -> float:
        """Part of all pruned matrices that block pruning left."""
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        kept = [size * self.backbones[layer.name].density for size, layer in zip(sizes, self.layers, strict=True)]
        return sum(kept) / sum(sizes)

    def load(self, matrix: int, sparsity: int, recipe: int) -> MatrixLoad:
        """Return what a matrix asks of the device."""
        layer, cut = self.layers[matrix], self.recipes[matrix][recipe]
        density = most_kept(self.backbones[layer.name], cut, 1.0 - self.grid[sparsity])
        return MatrixLoad(*layer.shape, density, cut.shape.group, lookup=layer.name in self.lookups)

    def seconds(self, level: int, sparsity: int, sets: Sequence[int]) -> float:
        """Return the s of one inference at a level."""
        loads = [self.load(m, sparsity, r) for m, r in enumerate(sets)]
        return self.latency.seconds(self.frequencies[level], (*loads, *self.rest))

    def latencies(self, choice: Choice) -> tuple[float, ...]:
        """Return the s of one inference at each level."""
        pairs = enumerate(zip(choice.sparsity, choice.sets, strict=True))
        return tuple(self.seconds(level, sparsity, sets) for level, (sparsity, sets) in pairs)

    @cached_property
    def fastest(self) -> tuple[tuple[int, ...], ...]:
        """For each sparsity of the grid the sets with which it is fastest, at the top frequency."""
        return tuple(
            tuple(min(range(len(rs)), key=lambda r: self._alone(m, s, r)) for m, rs in enumerate(self.recipes))
            for s in range(len(self.grid))
        )

    def _alone(self, matrix: int, sparsity: int, recipe: int) -> float:
        return self.latency.seconds(self.frequencies[0], (self.load(matrix, sparsity, recipe),))

    @cached_property
    def allowed(self) -> tuple[tuple[tuple[tuple[int, ...], ...] | None, ...], ...]:
        """For each level and sparsity the recipes of each matrix with which it can be in time; None where it cannot."""
        return tuple(
            tuple(self._allowed(level, s) for s in range(len(self.grid))) for level in range(len(self.frequencies))
        )

    def _allowed(self, level: int, sparsity: int) -> tuple[tuple[int, ...], ...] | None:
        everything = tuple(tuple(range(len(rs))) for rs in self.recipes)
        if not self.deadline_s:
            return everything
        best = list(self.fastest[sparsity])
        if self.seconds(level, sparsity, best) > self.deadline_s:
            return None
        groups: dict[tuple[int, int], bool] = {}  # the candidates of a group take equally long
        for m, recipes in enumerate(self.recipes):
            for r, recipe in enumerate(recipes):
                key = (m, recipe.shape.group)
                if key not in groups:
                    sets = [*best[:m], r, *best[m + 1 :]]
                    groups[key] = self.seconds(level, sparsity, sets) <= self.deadline_s
        return tuple(
            tuple(r for r in rs if groups[m, self.recipes[m][r].shape.group]) for m, rs in enumerate(everything)
        )

    @cached_property
    def ladders(self) -> tuple[tuple[int, ...], ...]:
        """Sparsities by level, each level sparser than the one before, that can meet the deadline."""
        return tuple(
            ladder
            for ladder in combinations(range(len(self.grid)), self.levels)
            if all(self.allowed[level][s] is not None for level, s in enumerate(ladder))
        )

    def options(self, ladder: Sequence[int]) -> list[tuple[tuple[int, ...], ...]]:
        """Return for each level of a ladder the recipes to choose from, by matrix."""
        return [self.allowed[level][s] or () for level, s in enumerate(ladder)]

    @property
    def size(self) -> int:
        """Children before the deadline rules any out."""
        sets = math.prod(len(rs) for rs in self.recipes) ** self.levels
        return math.comb(len(self.grid), self.levels) * sets

    @cached_property
    def shrunk_size(self) -> int:
        """Children that are left."""
        return sum(math.prod(len(o) for level in self.options(ladder) for o in level) for ladder in self.ladders)

    def check(self) -> None:
        """Refuse a deadline that nothing meets, and say what comes nearest."""
        for level, hz in enumerate(self.frequencies):
            if all(a is None for a in self.allowed[level]):
                last = len(self.grid) - 1
                nearest = self.seconds(level, last, self.fastest[last])
                raise Rt3Error(
                    f"deadline {1e3 * self.deadline_s:g} ms at {frequency_name(hz)}: no sparsity meets it: the nearest is "
                    f"{1e3 * nearest:.4g} ms, {self.grid[last]:.0%} of the backbone cut: allow more time or prune more"
                )
        if not self.ladders:
            raise Rt3Error(
                f"deadline {1e3 * self.deadline_s:g} ms: fewer sparsities meet it than there are levels "
                f"({self.levels}): offer more with `grid`, allow more time, or use fewer levels"
            )

    def cut(self, choice: Choice, weights: Weights, part: float = 1.0) -> tuple[Level, ...]:
        """Return the levels of a choice, this part of the way from the backbone to their sparsity."""
        levels = []
        for level, hz in enumerate(self.frequencies):
            sparsity = self.grid[choice.sparsity[level]]
            matrices = {
                layer.name: self.cut_matrix(layer, self.recipes[m][recipe], weights, 1.0 - part * sparsity)
                for m, (layer, recipe) in enumerate(zip(self.layers, choice.sets[level], strict=True))
            }
            overall = 1.0 - self.backbone_density * (1.0 - sparsity)
            levels.append(Level(overall, matrices, hz))
        return tuple(levels)

    def cut_matrix(self, layer: LinearLayer, recipe: PatternRecipe, weights: Weights, density: float) -> SparseMatrix:
        """Return one matrix at a density within its backbone."""
        backbone = self.backbones[layer.name]
        return cut_patterns(backbone.oriented(weights[layer.name]), backbone, recipe, density)


def recipes_of(layers: Sequence[LinearLayer], options: SearchOptions) -> tuple[tuple[PatternRecipe, ...], ...]:
    """Return the pattern sets that each matrix can choose from: candidates of every group V that fits it."""
    searched = options.search != "none"
    found = []
    for layer in layers:
        shapes = dict.fromkeys(_shape(options.shape, v).fitted(*layer.shape) for v in options.groups)
        if not searched:
            shapes = dict.fromkeys(list(shapes)[:1])
        alike = options.patterns == EACH_BLOCK and options.pattern != "random"  # each block's best pattern is one
        candidates = range(options.candidates if searched and not alike else 1)
        found.append(tuple(_recipe(options, layer, s, c) for s, c in product(shapes, candidates)))
    return tuple(found)


def _shape(shape: PatternShape, group: int) -> PatternShape:
    return PatternShape(-(-shape.rows // group) * group, shape.cols, group, shape.adjacent)


def _recipe(options: SearchOptions, layer: LinearLayer, shape: PatternShape, candidate: int) -> PatternRecipe:
    start = {"magnitude": "blocks", "maps": "maps", "random": "random"}[options.pattern]
    rounds = 0 if options.pattern == "random" else PatternRecipe(shape, 1).refinements
    seed = seed_of(options.seed, layer.name, candidate) % np.iinfo(np.int32).max
    return PatternRecipe(shape, options.patterns, start, rounds, at_most=True, seed=seed)  # type: ignore[arg-type]
