"""Products that models write with einsum, as what they are: linear layers, and products of the heads of two tensors.

XLNet's and Funnel's projections to heads have weights of three axes, (hidden, heads, head size). PyTorch's own decomposition
makes batches of one matrix of them, with the weight moved at run time.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch.fx import Graph, Node

ATEN = torch.ops.aten
MOST_BATCHES = 2
"""Axes of a batch of products: (batch, heads)."""


@dataclass(frozen=True)
class Labels:
    """An equation of two tensors: a letter for each axis of either, and of the result."""

    left: str
    right: str
    out: str

    @classmethod
    def of(cls, equation: str) -> Self | None:
        """Return what an equation says; None where it is not of two tensors, each letter once in each and in two of the three."""
        operands, _, out = equation.replace(" ", "").partition("->")
        sides = (*operands.split(","), out)
        if len(sides) != len(("left", "right", "out")) or not all(s.isalpha() and len(set(s)) == len(s) for s in sides):
            return None
        labels = cls(*sides)
        found = all(sum(label in side for side in sides) > 1 for label in set("".join(sides)))
        return labels if found else None

    @property
    def swapped(self) -> "Labels":
        """The same product the other way around."""
        return Labels(self.right, self.left, self.out)

    @property
    def shared(self) -> str:
        """Axes of all three: of a batch of products."""
        return "".join(label for label in self.out if label in self.left and label in self.right)

    @property
    def summed(self) -> str:
        """Axes that are summed over, in the order of the right side."""
        return "".join(label for label in self.right if label not in self.out)

    @property
    def rows(self) -> str:
        """Axes of the left side and the result alone, in the order of the left side."""
        return "".join(label for label in self.left if label in self.out and label not in self.right)

    @property
    def columns(self) -> str:
        """Axes of the right side and the result alone, in the order of the right side."""
        return "".join(label for label in self.right if label in self.out and label not in self.left)


def spell_out_einsum(program: torch.export.ExportedProgram) -> bool:
    """Replace each einsum of a graph that is a linear layer or a product of heads; return whether there was one.

    Others are left to PyTorch.
    """
    changed = False
    graph, parameters = program.graph, program.graph_signature.inputs_to_parameters
    for node in list(graph.nodes):
        if node.target is not ATEN.einsum.default:
            continue
        labels, operands = Labels.of(node.args[0]), node.args[1]
        if labels is None or _repeats(labels, *operands):
            continue
        with graph.inserting_before(node):
            result = _replacement(_Builder(graph), labels, operands, parameters)
        if result is not None:
            result.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(result)
            graph.erase_node(node)
            changed = True
    program.graph_module.recompile()
    return changed


def _replacement(build: "_Builder", labels: Labels, operands: Any, parameters: Any) -> Node | None:
    for own, (left, right) in ((labels, operands), (labels.swapped, operands[::-1])):
        if right.name in parameters and left.name not in parameters and _is_linear(own):
            return _linear(build, own, left, right)
    for own, (left, right) in ((labels, operands), (labels.swapped, operands[::-1])):
        if _is_product(own):
            return _product(build, own, left, right)
    return None


class _Builder:
    """Adds operators to a graph, and none where a tensor is already as it is wanted."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def call(self, operator: Any, *args: Any) -> Node:
        return self.graph.call_function(operator, args)

    def reshaped(self, x: Node, old: tuple[int, ...], new: tuple[int, ...]) -> Node:
        return x if old == new else self.call(ATEN.reshape.default, x, list(new))

    def moved(self, x: Node, old: str, new: str) -> Node:
        """Return a tensor with its axes in another order."""
        return x if old == new else self.call(ATEN.permute.default, x, [old.index(label) for label in new])


def _is_linear(labels: Labels) -> bool:
    """Return whether the right side can be a weight: one matrix, its first axis one side of it, rows that tokens can be."""
    summed, columns = labels.summed, labels.columns
    stored = (len(columns) == 1 and labels.right == columns + summed) or (
        len(summed) == 1 and labels.right == summed + columns
    )
    return stored and not labels.shared and len(labels.rows) in (1, 2) and bool(summed) and bool(columns)


def _linear(build: _Builder, labels: Labels, x: Node, weight: Node) -> Node:
    """Return the linear layer, whose weight is stored as (columns, summed) or the other way around."""
    size = _sizes(labels, x, weight)
    rows, summed, columns = labels.rows, labels.summed, labels.columns
    inner, outer = (prod(size[label] for label in side) for side in (summed, columns))
    moved = build.moved(x, labels.left, rows + summed)
    lines = tuple(size[label] for label in rows)
    flat = build.reshaped(moved, (*lines, *(size[label] for label in summed)), (*lines, inner))
    by_rows = labels.right == columns + summed
    shape = (outer, inner) if by_rows else (inner, outer)
    matrix = build.reshaped(weight, tuple(weight.meta["val"].shape), shape)
    result = build.call(ATEN.linear.default if by_rows else ATEN.matmul.default, flat, matrix)
    split = build.reshaped(result, (*lines, outer), (*lines, *(size[label] for label in columns)))
    return build.moved(split, rows + columns, labels.out)


def _is_product(labels: Labels) -> bool:
    """Return whether an equation is products of matrices in a batch, of one axis each side."""
    fits = len(labels.summed) == len(labels.columns) == 1 and labels.rows and labels.shared
    return bool(fits) and len(labels.out) - 2 <= MOST_BATCHES


def _product(build: _Builder, labels: Labels, left: Node, right: Node) -> Node:
    """Return the products; further rows are axes of the batch that the right side does not have."""
    row = next(label for label in reversed(labels.out) if label in labels.rows)
    batch = "".join(label for label in labels.out if label not in (row, labels.columns))
    a = build.moved(left, labels.left, batch + row + labels.summed)
    missing = "".join(label for label in batch if label not in labels.right)
    own = tuple(right.meta["val"].shape)
    b = build.reshaped(right, own, (*(1 for _ in missing), *own))
    b = build.moved(b, missing + labels.right, batch + labels.summed + labels.columns)
    return build.moved(build.call(ATEN.matmul.default, a, b), batch + row + labels.columns, labels.out)


def _repeats(labels: Labels, left: Node, right: Node) -> bool:
    """Return whether one side is summed over more elements than the other has: einsum repeats the one that there is."""
    sides = (labels.left, left.meta["val"].shape), (labels.right, right.meta["val"].shape)
    return any(len({shape[side.index(label)] for side, shape in sides}) > 1 for label in labels.summed)


def _sizes(labels: Labels, left: Node, right: Node) -> dict[str, int]:
    pairs = [
        *zip(labels.left, left.meta["val"].shape, strict=True),
        *zip(labels.right, right.meta["val"].shape, strict=True),
    ]
    return {label: int(n) for label, n in pairs}
