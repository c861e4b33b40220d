"""The amortized generator's image path: a residual UNet that attends to appearance tokens at its coarse scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splice_ff.networks.layers import CrossAttention, FeedForward

MARGIN = 0.02
"""Colors are brought this far inside [0, 1] before the logit, so that black and white can still be changed."""


@dataclass(frozen=True)
class UNetSize:
    """How large a UNet is."""

    channels: tuple[int, ...]
    """At each scale, finest first; each scale halves the sides."""
    blocks: int
    """Residual blocks a scale, on the way down and on the way up; the finest scale has one, on the way up."""
    attention_from: int
    """First scale that attends to the appearance tokens; all coarser ones do as well."""
    heads: int
    tokens: int
    """M, appearance tokens."""
    token_channels: int
    """C."""


SIZES = {
    "tiny": UNetSize((16, 32, 64, 128, 192), 1, 3, 4, 32, 192),
    "small": UNetSize((32, 64, 128, 256, 384), 1, 3, 8, 32, 256),
    "base": UNetSize((48, 112, 224, 384, 512), 2, 3, 8, 48, 384),
}


class CrossAttentionUNet(nn.Module):
    """Structure image and appearance tokens to an image of the structure's size.

    The output is made from the logits of the structure image's colors: an affine map of them, which the finest of
    the attending scales gives for each place (most of a look is color, and what is recolored keeps its edges), plus
    a change of every pixel. An untrained UNet copies. What the image shows is told by the structure image's deepest
    keys, whose map joins at the coarsest scale.

    Args:
        size: see `SIZES`.
        width: D of the backbone, whose keys it is given.
    """

    def __init__(self, size: UNetSize, width: int) -> None:
        super().__init__()
        c, tokens = size.channels, size.token_channels
        self.stride = 2 ** (len(c) - 1)
        self.checkpointing = False
        self.pool = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, tokens), nn.SiLU())
        self.stem = _Conv(3, c[0])
        self.semantics_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.semantics = nn.Conv2d(width, c[-1], 1)
        self.reduce, self.down, self.enlarge, self.up = (nn.ModuleList() for _ in range(4))
        for i in range(1, len(c)):
            self.reduce.append(_Conv(c[i - 1], c[i], stride=2))
            self.down.append(_Scale(c[i], size.blocks, size, i))
        for i in reversed(range(len(c) - 1)):
            self.enlarge.append(nn.Conv2d(c[i + 1], c[i], 1))
            self.up.append(_Scale(c[i], size.blocks if i else 1, size, i))
        change = _Conv(c[0], 3)
        nn.init.zeros_(change.weight)
        nn.init.zeros_(change.bias)  # type: ignore[arg-type]
        self.to_rgb = nn.Sequential(_norm(c[0]), nn.SiLU(), change)
        self.recolor_at = min(size.attention_from, len(c) - 2)  # a scale on the way up
        self.recolor = nn.Conv2d(c[self.recolor_at], 12, 1)
        nn.init.zeros_(self.recolor.weight)
        nn.init.zeros_(self.recolor.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)

    def forward(self, structure: Tensor, tokens: Tensor, semantics: Tensor) -> Tensor:
        """Paint.

        Args:
            structure: (B, 3, H, W) in [0, 1], any size: padded to the stride by reflection and cropped back.
            tokens: appearance tokens (B, M, C).
            semantics: deepest keys of the structure image's patches, (B, D, h, w); any grid, it is resized.

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        h, w = structure.shape[-2:]
        padded = _pad_to(structure, self.stride)
        look = self.pool(tokens).mean(1)
        normed = self.semantics_norm(rearrange(semantics, "b d h w -> b h w d"))
        known = self.semantics(rearrange(normed, "b h w d -> b d h w"))

        x = self.stem(padded * 2 - 1)
        skips = []
        for i, (reduce, scale) in enumerate(zip(self.reduce, self.down, strict=True)):
            skips.append(x)
            x = reduce(x)
            if i == len(self.down) - 1:
                x = x + F.interpolate(known, x.shape[-2:], mode="bilinear", align_corners=False)
            x = self._run(scale, x, look, tokens)
        for enlarge, scale in zip(self.enlarge, self.up, strict=True):
            skip = skips.pop()
            # projected first: four times fewer pixels. Bilinear, because nearest leaves squares behind.
            x = skip + F.interpolate(enlarge(x), skip.shape[-2:], mode="bilinear", align_corners=False)
            x = self._run(scale, x, look, tokens)
            if len(skips) == self.recolor_at:
                affine = F.interpolate(self.recolor(x), padded.shape[-2:], mode="bilinear", align_corners=False)
        logits = torch.logit(padded.float() * (1 - 2 * MARGIN) + MARGIN)
        matrix, shift = affine.float().split((9, 3), 1)
        mixed = torch.einsum("boihw,bihw->bohw", rearrange(matrix, "b (o i) h w -> b o i h w", o=3), logits)
        output = torch.sigmoid(logits + mixed + shift + self.to_rgb(x).float())
        return ((output - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)[..., :h, :w]

    def _run(self, scale: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(scale, *inputs, use_reentrant=False)
        return scale(*inputs)


class _Scale(nn.Module):
    """The work at one scale: residual blocks, each followed by attention where the scale is coarse enough."""

    def __init__(self, channels: int, blocks: int, size: UNetSize, index: int) -> None:
        super().__init__()
        attends = index >= size.attention_from
        self.blocks = nn.ModuleList(_ResidualBlock(channels, size.token_channels) for _ in range(blocks))
        self.attention = nn.ModuleList(
            CrossAttention(channels, size.token_channels, size.heads) for _ in range(blocks if attends else 0)
        )
        self.think = nn.ModuleList(FeedForward(channels) for _ in self.attention)

    def forward(self, x: Tensor, look: Tensor, tokens: Tensor) -> Tensor:
        h = x.shape[-2]
        for i, block in enumerate(self.blocks):
            x = block(x, look)
            if self.attention:
                pixels = rearrange(x, "b c h w -> b (h w) c")
                pixels = self.think[i](self.attention[i](pixels, tokens))
                x = rearrange(pixels, "b (h w) c -> b c h w", h=h)
        return x


class _ResidualBlock(nn.Module):
    """Two convolutions; between them the look scales and shifts the channels."""

    def __init__(self, channels: int, look_channels: int) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(channels), nn.SiLU(), _Conv(channels, channels))
        self.norm = _norm(channels)
        self.modulate = nn.Linear(look_channels, 2 * channels)
        self.after = nn.Sequential(nn.SiLU(), _Conv(channels, channels))

    def forward(self, x: Tensor, look: Tensor) -> Tensor:
        scale, shift = self.modulate(look)[..., None, None].chunk(2, 1)
        return x + self.after(self.norm(self.before(x)) * (1 + scale) + shift)


class _Conv(nn.Conv2d):
    """3 x 3, with the border repeated around it: zeros would tell where it is, and training paints a frame there."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # it takes a wrong layout for the gradient of replication padding
            x = torch.cat([x[..., :1], x, x[..., -1:]], -1)
            x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
        else:
            x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return super().forward(x)


def _norm(channels: int) -> nn.GroupNorm:
    """GroupNorm: statistics of a batch would mix pairs."""
    return nn.GroupNorm(max(1, channels // 16), channels)


def _pad_to(images: Tensor, stride: int) -> Tensor:
    """Pad (B, 3, H, W) below and to the right, by reflection, to sides that the stride divides."""
    h, w = images.shape[-2:]
    below, right = -h % stride, -w % stride
    if not (below or right):
        return images
    # reflection reaches no further than the image; what lies beyond, in tiny images, repeats the edge
    images = F.pad(images, (0, min(right, w - 1), 0, min(below, h - 1)), mode="reflect")
    return F.pad(images, (0, w + right - images.shape[-1], 0, h + below - images.shape[-2]), mode="replicate")
