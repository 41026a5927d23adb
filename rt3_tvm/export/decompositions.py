"""Operators that order values or place them, spelt out in comparisons and sums, which every target has.

A sort compares every pair of an axis: right for the experts of a layer or the tokens of an input, slow for a vocabulary.
"""

import torch

ATEN = torch.ops.aten
Tensor = torch.Tensor


def ranks(x: Tensor, descending: bool) -> Tensor:
    """Return how many values of the last axis stand before each one in order; of equal ones the first stands first."""
    position = torch.arange(x.shape[-1], dtype=torch.int32)
    own, other = x[..., :, None], x[..., None, :]
    before = other > own if descending else other < own
    earlier = (other == own) & (position[None, :] < position[:, None])
    return (before | earlier).to(torch.int32).sum(-1, dtype=torch.int32)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, ordered: bool = True) -> tuple[Tensor, Tensor]:
    """Return the first ``k`` values of an axis once it is sorted, and where each stood."""
    rows = x.transpose(dim, -1)
    here = ranks(rows, largest)[..., None, :] == torch.arange(k, dtype=torch.int32)[:, None]  # (..., k, values)
    index = torch.where(here, torch.arange(rows.shape[-1]), 0).sum(-1)
    return _chosen(here, rows[..., None, :]).transpose(dim, -1), index.transpose(dim, -1)


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Return the sorted values of an axis, and where each stood."""
    return topk(x, x.shape[dim], dim, descending)


def sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what :func:`sort` does, which keeps equal values in order."""
    return sort(x, dim, descending)


def largest(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the largest values of an axis, and where each stands."""
    return x.amax(dim, keepdim), x.argmax(dim, keepdim)


def scatter(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Return a tensor with values of ``source`` put where ``index`` says; of several at one place the last stays."""
    here = _targets(x, dim, index)  # (..., places, values)
    if here is None:
        return NotImplemented
    number = torch.arange(1, index.shape[dim] + 1)
    last = torch.where(here, number, 0).amax(-1, keepdim=True)
    put = _chosen(here & (number == last), _rows(source, dim, index)[..., None, :])
    return torch.where(last[..., 0] > 0, put, x.transpose(dim, -1)).transpose(dim, -1)


def scatter_value(x: Tensor, dim: int, index: Tensor, value: float) -> Tensor:
    """Return a tensor with one value wherever ``index`` says."""
    here = _targets(x, dim, index)
    if here is None:
        return NotImplemented
    hit = here.to(torch.int32).sum(-1, dtype=torch.int32).transpose(dim, -1) > 0
    return torch.where(hit, torch.full((), value, dtype=x.dtype), x)


def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Return a tensor with values of ``source`` added where ``index`` says."""
    here = _targets(x, dim, index)
    if here is None:
        return NotImplemented
    return x + _chosen(here, _rows(source, dim, index)[..., None, :]).transpose(dim, -1)


def full_like(x: Tensor, value: float, *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    """Return a tensor of one value that depends on no other, so that it is a constant of the graph."""
    return torch.full(x.shape, value, dtype=dtype or x.dtype)


def _targets(x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    """Return which values of an index (..., values) go to which places of an axis; None where it covers part of other axes."""
    rows = index.transpose(dim, -1)
    if not x.ndim or rows.shape[:-1] != x.transpose(dim, -1).shape[:-1]:
        return None
    return rows[..., None, :] == torch.arange(x.shape[dim])[:, None]


def _rows(source: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return the part of a source that an index covers, the axis last."""
    return source[tuple(slice(0, n) for n in index.shape)].transpose(dim, -1)


def _chosen(here: Tensor, values: Tensor) -> Tensor:
    """Return the sum along the last axis of the values that are chosen, in their own type."""
    return torch.where(here, values, torch.zeros((), dtype=values.dtype)).sum(-1).to(values.dtype)


DECOMPOSITIONS = {
    ATEN.topk.default: topk,
    ATEN.sort.default: sort,
    ATEN.sort.stable: sort_stable,
    ATEN.full_like.default: full_like,
    ATEN.max.dim: largest,
    ATEN.scatter.src: scatter,
    ATEN.scatter.value: scatter_value,
    ATEN.scatter_add.default: scatter_add,
}
"""What export takes apart beyond what PyTorch's own table does."""
