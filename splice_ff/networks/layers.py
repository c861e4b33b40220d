"""Multi-head attention as the encoder and the UNet use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Residual attention of queries (B, N, C) to a context (B, M, K), with a norm before each.

    Args:
        channels, context_channels: C and K.
        heads: must divide C.

    Raises:
        ValueError: heads do not divide the channels.
    """

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.norm, self.context_norm = nn.LayerNorm(channels), nn.LayerNorm(context_channels)
        self.to_queries = nn.Linear(channels, channels, bias=False)
        self.to_keys_values = nn.Linear(context_channels, 2 * channels, bias=False)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, C) and (B, M, K) to (B, N, C)."""
        keys, values = self._split(self.to_keys_values(self.context_norm(context)).chunk(2, -1))
        queries = self._split((self.to_queries(self.norm(x)),))[0]
        y = F.scaled_dot_product_attention(queries, keys, values)
        return x + self.project(rearrange(y, "b heads n d -> b n (heads d)"))

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """What each query attends to: (B, heads, N, M), rows sum to 1. For looking; `forward` never holds it."""
        keys, _ = self._split(self.to_keys_values(self.context_norm(context)).chunk(2, -1))
        queries = self._split((self.to_queries(self.norm(x)),))[0]
        return torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, -1)

    def _split(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        return [rearrange(part, "b n (heads d) -> b heads n d", heads=self.heads) for part in parts]


class FeedForward(nn.Sequential):
    """Residual two-layer perceptron on (B, N, C), with a norm before it."""

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, ratio * channels),
            nn.GELU(),
            nn.Linear(ratio * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        return x + super().forward(x)
