"""[CLS] tokens of all layers to the appearance tokens that the generator attends to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from splice_ff.networks.layers import CrossAttention, FeedForward

BLOCKS = 2
"""Rounds of attention to the context and among the appearance tokens."""


class AppearanceEncoder(nn.Module):
    """Learned queries that gather M appearance tokens from the [CLS] tokens of all layers.

    One [CLS] vector as the only key would make cross-attention a constant: a softmax over one element. Shallow
    layers' tokens know color and texture, deep ones parts; each layer has a projection of its own, and each query
    gathers another mixture of them.

    Args:
        layers, width: L and D of the backbone.
        tokens, channels: M and C of the result.
        heads: of attention.
        patches: also attend to the appearance image's patch tokens.
    """

    def __init__(self, layers: int, width: int, tokens: int, channels: int, heads: int, patches: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.project = nn.Parameter(torch.randn(layers, width, channels) * width**-0.5)
        self.layer_embedding = nn.Parameter(torch.randn(layers, channels) * 0.02)
        self.project_patches = nn.Linear(width, channels) if patches else None
        self.queries = nn.Parameter(torch.randn(tokens, channels) * channels**-0.5)
        self.gather, self.mix, self.think = (nn.ModuleList() for _ in range(3))
        for _ in range(BLOCKS):
            self.gather.append(CrossAttention(channels, channels, heads))
            self.mix.append(CrossAttention(channels, channels, heads))
            self.think.append(FeedForward(channels))

    def forward(self, cls: Tensor, patches: Tensor | None = None) -> Tensor:
        """Appearance tokens.

        Args:
            cls: (B, L, D), outputs of all blocks at the [CLS] position.
            patches: (B, N, D), deepest block's outputs at the patches; only with `patches=True`.

        Returns:
            (B, M, C).

        Raises:
            ValueError: patches are missing where they are needed, or given where they are not.
        """
        if (patches is None) != (self.project_patches is None):
            raise ValueError("patch tokens are needed with context 'cls+patches', and only then")
        context = torch.einsum("bld,ldc->blc", self.norm(cls), self.project) + self.layer_embedding
        if self.project_patches is not None and patches is not None:
            context = torch.cat([context, self.project_patches(self.norm(patches))], 1)
        x = self.queries.expand(len(cls), -1, -1)
        for gather, mix, think in zip(self.gather, self.mix, self.think, strict=True):
            x = gather(x, context)
            x = think(mix(x, x))
        return x
