"""The per-pair generator: a small UNet whose skip connections carry four channels each (paper, appendix)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 128, 128)
SKIP_CHANNELS = 4
MIN_SIDE = 33
"""Pixels: five halvings must leave more than one for the normalization."""


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
    """Image to image of the same size, (B, 3, H, W) in [0, 1]; sides of at least `MIN_SIDE`.

    Args:
        variant: a key of `VARIANTS`.
        in_channels: of the input, where that is no image (feature inversion paints from noise).
    """

    def __init__(self, variant: str = "published", in_channels: int = 3) -> None:
        super().__init__()
        v = VARIANTS[variant]
        self.join = _pad_to_larger if v.join == "pad" else _crop_to_smaller
        self.skips, self.down, self.joins, self.up = (nn.ModuleList() for _ in range(4))
        inputs = (in_channels, *CHANNELS[:-1])
        below = (*CHANNELS[1:], CHANNELS[-1])
        for ins, outs, deeper in zip(inputs, CHANNELS, below, strict=True):
            self.skips.append(_layer(ins, SKIP_CHANNELS, 1, v))
            self.down.append(nn.Sequential(_layer(ins, outs, 3, v, stride=2), _layer(outs, outs, 3, v)))
            self.joins.append(JoinedConv(SKIP_CHANNELS, deeper, outs, v.padding_mode))
            self.up.append(
                nn.Sequential(InstanceNorm(outs), nn.LeakyReLU(0.2, True), _layer(outs, outs, v.second_kernel, v))
            )
        self.to_rgb = nn.Conv2d(CHANNELS[0], 3, 1)
        self.apply(_initialize)
        self.to(memory_format=torch.channels_last)  # convolutions take half the time, on CPUs too

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to images of the same shape and range."""
        h, w = images.shape[-2:]
        if min(h, w) < MIN_SIDE:
            raise ValueError(f"images of {h}x{w} pixels are too small for the generator (at least {MIN_SIDE})")
        x, skipped = images.contiguous(memory_format=torch.channels_last), []
        for skip, down in zip(self.skips, self.down, strict=True):
            skipped.append(skip(x))
            x = down(x)
        for i in reversed(range(len(self.up))):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = self.up[i](self.joins[i](*self.join(skipped[i], x)))
        # In float32: bfloat16 has too few steps between 0 and 1 for an image.
        return torch.sigmoid(self.to_rgb(x).float())[..., :h, :w]


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalization with learned scale and shift.

    The published code uses BatchNorm in training mode on batches of one image, also for its final image. That
    is instance normalization; written so, images can share a batch without mixing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return _instance_norm(x, self.weight, self.bias)


class JoinedConv(nn.Module):
    """Concatenate, normalize, convolve 3x3, as published, but without the concatenation.

    Both operations act on channels, so each part can be normalized alone and the two convolutions added. The
    gradients then stay channels_last, which concatenation breaks; a training step takes a fifth less time.
    """

    def __init__(self, skip_channels: int, deep_channels: int, out_channels: int, padding_mode: str) -> None:
        super().__init__()
        self.skip_channels, self.padding_mode = skip_channels, padding_mode
        self.norm = InstanceNorm(skip_channels + deep_channels)
        self.conv = nn.Conv2d(skip_channels + deep_channels, out_channels, 3)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        """Skipped (B, S, H, W) and upsampled features (B, D, H, W) to (B, out, H, W)."""
        n = self.skip_channels
        return self._part(skip, slice(None, n), None) + self._part(deep, slice(n, None), self.conv.bias)

    def _part(self, x: Tensor, channels: slice, bias: Tensor | None) -> Tensor:
        x = _instance_norm(x, self.norm.weight[channels], self.norm.bias[channels])
        if self.padding_mode == "reflect":
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.conv.weight[:, channels], bias)
        return F.conv2d(x, self.conv.weight[:, channels], bias, padding=1)


def _instance_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    if len(x) == 1:  # the same function, in a kernel that knows channels_last
        return F.batch_norm(x, None, None, scale, shift, training=True)
    return F.instance_norm(x, weight=scale, bias=shift)


def _layer(ins: int, outs: int, kernel: int, variant: SkipUNetVariant, stride: int = 1) -> nn.Sequential:
    mode = variant.padding_mode if kernel > 1 else "zeros"
    return nn.Sequential(
        nn.Conv2d(ins, outs, kernel, stride, kernel // 2, padding_mode=mode),
        InstanceNorm(outs),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _initialize(module: nn.Module) -> None:
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
