"""The per-pair generator: a small UNet whose skip connections carry four channels each (paper, appendix)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 128, 128)
SKIP_CHANNELS = 4
MIN_SIZE = 64
"""Shortest side in pixels: five halvings must leave more than one pixel for the normalisation."""


@dataclass(frozen=True)
class SkipUNetVariant:
    """What differs between variants of the generator."""

    padding_mode: Literal["zeros", "reflect"]
    second_kernel: int
    """Kernel of the second convolution of each level on the way up."""
    join: Literal["crop", "pad"]
    """Where a level has an odd side: crop the larger of skip and upsampled features, or pad the smaller."""


VARIANTS = {
    "published": SkipUNetVariant("zeros", 1, "crop"),
    # from a published reproduction, which found it slightly better
    "refined": SkipUNetVariant("reflect", 3, "pad"),
}


class SkipUNet(nn.Module):
    """Image to image of the same size, (B, 3, H, W) in [0, 1]; sides of at least `MIN_SIZE`.

    The published code normalises with BatchNorm in training mode over batches of one image, also for its final
    picture. That is instance normalisation; written so, images can share a batch without mixing.

    Args:
        variant: a key of `VARIANTS`.
    """

    def __init__(self, variant: str = "published") -> None:
        super().__init__()
        self.variant = variant
        v = VARIANTS[variant]
        self.down, self.skips, self.joins, self.up = (nn.ModuleList() for _ in range(4))
        inputs = (3, *CHANNELS[:-1])
        below = (*CHANNELS[1:], CHANNELS[-1])
        for ins, outs, deeper in zip(inputs, CHANNELS, below, strict=True):
            self.skips.append(_layer(ins, SKIP_CHANNELS, 1, v))
            self.down.append(nn.Sequential(_layer(ins, outs, 3, v, stride=2), _layer(outs, outs, 3, v)))
            self.joins.append(nn.InstanceNorm2d(SKIP_CHANNELS + deeper, affine=True))
            self.up.append(
                nn.Sequential(_layer(SKIP_CHANNELS + deeper, outs, 3, v), _layer(outs, outs, v.second_kernel, v))
            )
        self.to_rgb = nn.Conv2d(CHANNELS[0], 3, 1)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to images of the same shape and range."""
        h, w = images.shape[-2:]
        if min(h, w) < MIN_SIZE:
            raise ValueError(f"images of {h}x{w} pixels are too small for the generator (at least {MIN_SIZE})")
        x, skipped = images, []
        for skip, down in zip(self.skips, self.down, strict=True):
            skipped.append(skip(x))
            x = down(x)
        join = _pad_to_larger if VARIANTS[self.variant].join == "pad" else _crop_to_smaller
        for i in reversed(range(len(self.up))):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = self.up[i](self.joins[i](torch.cat(join(skipped[i], x), 1)))
        return torch.sigmoid(self.to_rgb(x))[..., :h, :w]


def _layer(ins: int, outs: int, kernel: int, variant: SkipUNetVariant, stride: int = 1) -> nn.Sequential:
    mode = variant.padding_mode if kernel > 1 else "zeros"
    return nn.Sequential(
        nn.Conv2d(ins, outs, kernel, stride, kernel // 2, padding_mode=mode),
        nn.InstanceNorm2d(outs, affine=True),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    """Xavier with gain 0.02, norm weights around 1, as published."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_normal_(module.weight, gain=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _crop_to_smaller(skip: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h, w = min(skip.shape[-2], x.shape[-2]), min(skip.shape[-1], x.shape[-1])
    return skip[..., :h, :w], x[..., :h, :w]


def _pad_to_larger(skip: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The upsampled side is never the smaller one: odd sides round up on the way down."""
    rest = (0, x.shape[-1] - skip.shape[-1], 0, x.shape[-2] - skip.shape[-2])
    return F.pad(skip, rest, mode="replicate"), x
