"""Mixtures of experts as a graph of one shape: every expert sees every token, and a token adds up those that it was sent to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "rt3_every_expert"
"""What transformers knows our way of running experts by."""


def every_expert(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Return what transformers' own ways of running experts give: (tokens, features) -> (tokens, features).

    The others sort tokens by expert, so that their shapes depend on the data. An index past the last expert is none of them.
    """
    shares = routing(top_k_index, top_k_weights, experts.num_experts)
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    inner = _projected(experts, name, hidden_states)  # (experts, tokens, inner features)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _projected(experts, "down_proj", inner)  # (experts, tokens, features)
    if experts.has_post_expert_norm:
        outer = experts.post_expert_norm(outer)
    return (outer * shares.T[..., None]).sum(0).to(hidden_states.dtype)


def routing(index: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """Return the share (tokens, ``count``) of each expert in each token; ``index`` and ``weights`` are (tokens, chosen)."""
    chosen = index[..., None] == torch.arange(count)
    return (chosen * weights[..., None]).sum(1)


def _projected(experts: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """Return rows times the matrix of each expert, plus its bias; of the two, rows are what is transposed at run time."""
    weight = getattr(experts, name)
    product = x @ weight if experts.is_transposed else (weight @ x.transpose(-1, -2)).transpose(1, 2)
    return product + getattr(experts, f"{name}_bias")[:, None] if experts.has_bias else product


@contextmanager
def experts_unrolled(model: torch.nn.Module) -> Iterator[None]:
    """Let a model's experts run as :func:`every_expert` does."""
    # The names are those that transformers' decorator gives to a module that asks its registry.
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "has_post_expert_norm")}
    if configs:  # other models need no registry, which not every transformers has
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(NAME, every_expert)
    before = {key: config._experts_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._experts_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation_internal = before[key]
