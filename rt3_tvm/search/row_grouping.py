"""Rows beside rows like them, before anything is cut: groups of V rows and block rows then lose less.

Only rows that may be permuted for free: those of a linear layer whose outputs pass through element-wise operators into one other
linear layer alone, whose columns take the same order (the two of a feed-forward part). The model's function stays the same.
"""

from dataclasses import dataclass

import numpy as np
import torch

from rt3_tvm.export import LINEAR_OPERATORS, export, parameter_names

ELEMENTWISE = frozenset(
    {
        torch.ops.aten.gelu.default,
        torch.ops.aten.relu.default,
        torch.ops.aten.silu.default,
        torch.ops.aten.tanh.default,
        torch.ops.aten.sigmoid.default,
        torch.ops.aten.clone.default,
        torch.ops.aten.alias.default,
    }
)


@dataclass(frozen=True)
class FreeRows:
    """Names of a weight whose rows may be permuted, its bias, and the weight whose columns follow; as the model stores them."""

    weight: str
    bias: str | None
    follower: str
    transposed: bool


def find_free_rows(model: torch.nn.Module) -> list[FreeRows]:
    """Return the pairs of linear layers between which there is nothing but one chain of element-wise operators."""
    program = export(model, 1, 8)
    names = parameter_names(program)
    found = []
    for node in program.graph.nodes:
        if node.target not in LINEAR_OPERATORS:
            continue
        end = node
        while len(end.users) == 1 and next(iter(end.users)).target in ELEMENTWISE | {torch.ops.aten.view.default}:
            end = next(iter(end.users))
        follower = next(iter(end.users)) if len(end.users) == 1 else None
        if follower is None or follower.target is not node.target:
            continue
        position = LINEAR_OPERATORS[node.target]
        transposed = position == 2
        if follower.args[position - 1] is not end:
            continue
        weight, after = node.args[position].name, follower.args[position].name
        biases = node.args[0:1] if transposed else node.args[2:3]
        bias = biases[0].name if biases and biases[0] is not None else None
        if weight in names and after in names and (bias is None or bias in names):
            found.append(FreeRows(names[weight], names[bias] if bias else None, names[after], transposed))
    return found


def similar_order(weight: np.ndarray) -> np.ndarray:
    """Return rows in an order in which each is followed by the most similar one that is left, by the cosine of |w|.

    ``weight`` (rows, cols).
    """
    size = np.abs(weight)
    size = size - size.mean(0)
    size /= np.maximum(np.linalg.norm(size, axis=1, keepdims=True), 1e-12)
    alike = size @ size.T
    np.fill_diagonal(alike, -np.inf)
    order = [int(np.argmax(np.linalg.norm(weight, axis=1)))]
    left = np.ones(len(weight), dtype=bool)
    left[order[0]] = False
    while left.any():
        row = int(np.argmax(np.where(left, alike[order[-1]], -np.inf)))
        order.append(row)
        left[row] = False
    return np.array(order)


def group_rows(model: torch.nn.Module, wanted: set[str]) -> int:
    """Permute the rows that may be, of the weights that are wanted; return of how many matrices."""
    rows = [free for free in find_free_rows(model) if free.weight in wanted]
    with torch.no_grad():
        for free in rows:
            weight, follower = model.get_parameter(free.weight), model.get_parameter(free.follower)
            axis = 1 if free.transposed else 0
            order = torch.from_numpy(similar_order((weight.T if free.transposed else weight).numpy()))
            weight.copy_(weight.index_select(axis, order))
            follower.copy_(follower.index_select(1 - axis, order))
            if free.bias is not None:
                bias = model.get_parameter(free.bias)
                bias.copy_(bias[order])
    return len(rows)
