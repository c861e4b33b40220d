"""The two halves of a transformer block, as the appearance encoder and the UNet use them."""

from __future__ import annotations

import splice_ff.utils.lean  # noqa: F401  # before timm

# isort: split
from einops import rearrange
from timm.layers import Mlp
from torch import Tensor, nn

from splice_ff.utils.attention import attention


class CrossAttention(nn.Module):
    """Residual multi-head attention of queries (B, N, C) to a context (B, M, K), with a norm before each.

    Conditioning by cross-attention to a set of context tokens is that of latent diffusion (arXiv:2112.10752).

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
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(context_channels, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, C) and (B, M, K) to (B, N, C)."""
        q = rearrange(self.to_q(self.norm(x)), "b n (heads d) -> b heads n d", heads=self.heads)
        kv = self.to_kv(self.context_norm(context))
        k, v = rearrange(kv, "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        return x + self.to_out(rearrange(attention(q, k, v), "b heads n d -> b n (heads d)"))


class ResidualMlp(Mlp):  # type: ignore[misc]  # timm has no types here
    """timm's two-layer perceptron on (B, N, C), with a norm before it and a residual around it."""

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__(channels, ratio * channels)
        self.input_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        change: Tensor = super().forward(self.input_norm(x))
        return x + change
