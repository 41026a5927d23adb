"""RT3's language model: the word-level Transformer of the PyTorch tutorial, whose ten matrices RT3 prunes.

Embedding, sinusoidal positions, an ``nn.TransformerEncoder`` (post-norm, ReLU) under a causal mask, and a decoder to the
vocabulary. Source of the sizes: RT3's public code (see the constants of DAC 2021, arXiv 2102.06336).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

HIDDEN = float(torch.finfo(torch.float32).min)


@dataclass(frozen=True)
class TransformerLMConfig:
    """Sizes; the defaults are RT3's: 51.8 million weights in ten matrices."""

    vocab_size: int = 28785
    hidden_size: int = 800
    intermediate_size: int = 200
    num_attention_heads: int = 4
    num_hidden_layers: int = 2
    max_position_embeddings: int = 512
    dropout: float = 0.2
    pad_token_id: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as JSON."""
        return asdict(self)


def sinusoids(length: int, features: int) -> torch.Tensor:
    """Return the positions of "Attention Is All You Need" (arXiv 1706.03762), (length, features)."""
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, features, 2) * (-math.log(10000.0) / features))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(length, features)


class TransformerLM(nn.Module):
    """The model.

    ``encoder`` is an ``nn.TransformerEncoder`` and keeps its weights' names; its layers are run step by step, because what that
    class does with a mask and a batch does not export to operators that a compiler can follow.
    """

    def __init__(self, config: TransformerLMConfig) -> None:
        super().__init__()
        self.config = config
        features = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, features)
        self.register_buffer("positions", sinusoids(config.max_position_embeddings, features)[None], persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            features, config.num_attention_heads, config.intermediate_size, config.dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=False)
        self.decoder = nn.Linear(features, config.vocab_size)
        for weight in (self.embedding.weight, self.decoder.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return ``logits`` (batch, length, vocabulary).

        ``attention_mask``: (batch, length), 1 for real tokens; or what is added to the scores, (batch, 1, length, length).
        """
        length = input_ids.shape[1]
        x = self.embedding(input_ids) * math.sqrt(self.config.hidden_size)
        x = self.dropout(x + self.positions[:, :length])  # type: ignore[index]
        mask = attention_mask
        if mask is None or mask.ndim == 2:
            mask = torch.full((length, length), HIDDEN, device=x.device).triu(1)[None, None]
            if attention_mask is not None:
                hidden = (1.0 - attention_mask[:, None, None].to(x.dtype)) * HIDDEN
                mask = torch.minimum(mask, hidden)
        for layer in self.encoder.layers:
            x = layer.norm1(x + layer.dropout1(self._attend(layer.self_attn, x, mask)))  # type: ignore[operator, arg-type]
            inner = layer.dropout(functional.relu(layer.linear1(x)))  # type: ignore[operator]
            x = layer.norm2(x + layer.dropout2(layer.linear2(inner)))  # type: ignore[operator]
        return {"logits": self.decoder(x)}

    def _attend(self, attention: nn.MultiheadAttention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, features = x.shape
        heads = self.config.num_attention_heads
        projected = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (
            part.view(batch, length, heads, features // heads).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )
        dropout = self.config.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        return attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, features))
