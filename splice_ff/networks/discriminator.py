"""A projected discriminator: photographs or outputs, told apart in a frozen network's feature maps.

Projected GANs (Sauer et al., arXiv:2111.01007) mix the maps of a frozen network by random convolutions that are never
trained, channels first and then scales from coarse to fine, and train a small discriminator on each: it sees only what
the network knows of images. Each is told which look the image should have, as a
projection discriminator (Miyato and Koyama, arXiv:1802.05637) is told a class: a photograph comes with its own [CLS].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

MIXED = 256
"""Most channels of a map after mixing."""
HIDDEN = 128
"""Channels of the discriminator of a scale."""


class ProjectedDiscriminator(nn.Module):
    """Feature maps and [CLS] tokens to logits: above 0 for photographs.

    Args:
        channels: of the maps, finest first.
        width: D of the [CLS] tokens.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        mixed = [min(count, MIXED) for count in channels]
        coarser = [*mixed[1:], 0]
        # The paper's cross-channel and cross-scale mixing (CCM, CSM).
        self.mix_channels = nn.ModuleList(nn.Conv2d(c, m, 1, bias=False) for c, m in zip(channels, mixed, strict=True))
        self.mix_scales = nn.ModuleList(
            nn.Conv2d(m + c, m, 3, padding=1, bias=False) for m, c in zip(mixed, coarser, strict=True)
        )
        self.mix_channels.requires_grad_(False)
        self.mix_scales.requires_grad_(False)
        self.heads = nn.ModuleList(_Head(m, width) for m in mixed)

    def forward(self, maps: Sequence[Tensor], cls: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w), finest first, and the [CLS] tokens (B, D) of the look, to logits (B, h', w') of each."""
        logits, coarser = [], None
        scales: list[Any] = list(zip(maps, self.mix_channels, self.mix_scales, self.heads, strict=True))
        for features, mix_channels, mix_scales, head in reversed(scales):
            x = mix_channels(features)
            if coarser is not None:
                x = torch.cat([x, F.interpolate(coarser, x.shape[-2:], mode="bilinear", align_corners=False)], 1)
            coarser = mix_scales(x)
            logits.append(head(coarser, cls))
        return logits


class _Head(nn.Module):
    """The discriminator of one scale."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, HIDDEN, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(HIDDEN, HIDDEN, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
        )
        self.real = spectral_norm(nn.Conv2d(HIDDEN, 1, 1))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.look = spectral_norm(nn.Linear(width, HIDDEN, bias=False))

    def forward(self, x: Tensor, cls: Tensor) -> Tensor:
        """(B, C, h, w) and (B, D) to (B, h / 2, w / 2): the logit of a photograph, and how far it has the look."""
        features = self.features(x)
        look = self.look(self.norm(cls))[..., None, None]
        logits: Tensor = self.real(features)[:, 0] + (features * look).mean(1)
        return logits
