"""[CLS] tokens of all layers to the appearance tokens that the generator attends to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from splice_ff.networks.layers import CrossAttention, ResidualMlp

BLOCKS = 2


class AppearanceEncoder(nn.Module):
    """Learned queries that read M appearance tokens out of the [CLS] tokens of all layers.

    A single [CLS] vector as the only key would make cross-attention a constant: a softmax over one element. Shallow
    layers' tokens hold color and texture, deep ones parts; each layer has a projection of its own, and each query
    reads another mixture of them. Learned queries that attend to a set of any size are those of Perceiver
    (arXiv:2103.03206).

    Args:
        layers, width: L and D of the backbone.
        tokens, channels: M and C of the result.
        heads: of attention.
        patches: also attend to the appearance image's patch tokens.
    """

    def __init__(self, layers: int, width: int, tokens: int, channels: int, heads: int, patches: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.layer_proj = _normal(layers, width, channels, std=width**-0.5)
        self.layer_embedding = _normal(layers, channels, std=0.02)
        self.patch_proj = nn.Linear(width, channels) if patches else None
        self.queries = _normal(tokens, channels, std=channels**-0.5)
        self.blocks = nn.ModuleList(_EncoderBlock(channels, heads) for _ in range(BLOCKS))

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
        if (patches is None) != (self.patch_proj is None):
            raise ValueError("patch tokens are needed with context 'cls+patches', and only then")
        dtype = self.queries.dtype
        context = torch.einsum("bld,ldc->blc", self.norm(cls).to(dtype), self.layer_proj) + self.layer_embedding
        if self.patch_proj is not None and patches is not None:
            context = torch.cat([context, self.patch_proj(self.norm(patches).to(dtype))], 1)
        x = self.queries.expand(len(cls), -1, -1)
        for block in self.blocks:
            x = block(x, context)
        return x


class _EncoderBlock(nn.Module):
    """Attention of the queries to the context, then among themselves, then an MLP."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(channels, channels, heads)
        self.self_attn = CrossAttention(channels, channels, heads)
        self.mlp = ResidualMlp(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.cross_attn(x, context)
        return self.mlp(self.self_attn(x, x))


def _normal(*shape: int, std: float) -> nn.Parameter:
    values = torch.empty(*shape)
    return nn.Parameter(values if values.is_meta else values.normal_(std=std))  # there torch would load its compiler
