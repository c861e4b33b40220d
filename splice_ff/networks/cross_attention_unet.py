"""The amortized generator's image path: a residual UNet that attends to appearance tokens at its coarse scales."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splice_ff.errors import InputError
from splice_ff.networks.bilateral_grid import (
    NUMBERS,
    Change,
    Guide,
    centers,
    logits_and_added,
    recolor_at_full_size,
    to_colors,
)
from splice_ff.networks.fine_colors import fine_colors
from splice_ff.networks.joint_bilateral import edge_weights, upsample_along_edges
from splice_ff.networks.layers import CrossAttention, ResidualMlp
from splice_ff.utils.box_filter import repeat_border

MIN_SCALES = 3
"""The finest changes pixels, the coarsest is as far down as it goes; color maps need one between."""
MAX_SCALES, MAX_BLOCKS, MAX_CHANNELS, MAX_BINS, MAX_PARTS = 8, 16, 8192, 64, 2
"""More of them than any generator has; a file that asks for more is damaged, or made to fill the memory."""


@dataclass(frozen=True)
class UNetConfig:
    """The numbers of a UNet.

    Raises:
        InputError: a number that no UNet can have.
    """

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
    bins: int = 1
    """Of the grid of color maps along its guide; with 1 the maps depend on the place alone."""
    parts: int = 1
    """Into which a cell of the grid is divided along edges, along each side."""
    keeps_fine_colors: bool = False
    """Whether fine contrasts of colors stay the structure image's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # a list, where it comes from JSON
        if not MIN_SCALES <= len(self.channels) <= MAX_SCALES:
            found = len(self.channels)
            raise InputError(f"channels must be given for {MIN_SCALES} to {MAX_SCALES} scales, not {found}")
        check_count("channels", self.channels, MAX_CHANNELS)
        check_count("blocks", [self.blocks], MAX_BLOCKS)
        check_count("attention_from", [self.attention_from], len(self.channels) - 1)
        for name in ("heads", "tokens", "token_channels"):
            check_count(name, [getattr(self, name)], MAX_CHANNELS)
        check_count("bins", [self.bins], MAX_BINS)
        check_count("parts", [self.parts], MAX_PARTS)
        if type(self.keeps_fine_colors) is not bool:
            raise InputError(f"keeps_fine_colors must be true or false, not {self.keeps_fine_colors!r:.40}")


def check_count(name: str, values: Iterable[object], maximum: int) -> None:
    """Raise InputError unless all values are whole numbers from 1 to the maximum."""
    for value in values:
        if type(value) is not int or not 1 <= value <= maximum:
            raise InputError(f"{name} must be a whole number from 1 to {maximum}, not {value!r:.40}")


SIZES = {
    "tiny": UNetConfig((16, 32, 64, 128, 192), 1, 3, 4, 32, 192),
    "compact": UNetConfig((24, 48, 96, 192, 320), 1, 3, 4, 32, 256),
    "small": UNetConfig((32, 64, 128, 256, 384), 1, 3, 8, 32, 256),
    "base": UNetConfig((48, 112, 224, 384, 512), 2, 3, 8, 48, 384),
}
SIZES |= {f"{name}-grid": replace(size, bins=8, parts=2, keeps_fine_colors=True) for name, size in SIZES.items()}
"""Generators by name; a model's config.json holds the numbers, so that it outlives a change here."""


class CrossAttentionUNet(nn.Module):
    """Structure image and appearance tokens to an image of the structure's size.

    Cross-attention at the coarse scales is that of latent diffusion's UNet (arXiv:2112.10752); the mean of the
    appearance tokens also scales and shifts the channels of every residual block, as FiLM (arXiv:1709.07871) and
    adaptive group normalization (arXiv:2105.05233) do.

    The output is made from the logits of the structure image's colors: an affine map of them for each place, given
    by the finest of the attending scales (most of a look is color, and what is recolored keeps its edges), plus a
    change of every pixel. The maps are a bilateral grid, see `splice_ff.networks.bilateral_grid`; its cells may be
    divided along edges, see `splice_ff.networks.joint_bilateral`. Fine contrasts of colors may be taken out of both,
    see `splice_ff.networks.fine_colors`. An untrained UNet copies. The structure features say what the image shows;
    their map joins at the coarsest scale.

    Args:
        config: its numbers; `SIZES` has some.
        width: D of the backbone whose keys are the structure features.
    """

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        c, tokens = config.channels, config.token_channels
        self.stride = 2 ** (len(c) - 1)
        self.checkpointing = False
        self.token_pool = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, tokens), nn.SiLU())
        self.stem = _Conv(3, c[0])
        self.structure_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.structure_proj = nn.Conv2d(width, c[-1], 1)
        self.downsample, self.down, self.upsample, self.up = (nn.ModuleList() for _ in range(4))
        for i in range(1, len(c)):
            self.downsample.append(_Conv(c[i - 1], c[i], stride=2))
            self.down.append(UNetStage(config, i, config.blocks))
        for i in reversed(range(len(c) - 1)):
            self.upsample.append(nn.Conv2d(c[i + 1], c[i], 1))
            self.up.append(UNetStage(config, i, config.blocks if i else 1))
        self.to_rgb = pixel_head(c[0])
        self.color_scale = min(config.attention_from, len(c) - 2)  # one on the way up
        self.parts, self.keeps_fine_colors = config.parts, config.keeps_fine_colors
        self.cell = 2**self.color_scale // config.parts
        """Side, in pixels, of a cell of the grid of color maps, once it is divided."""
        self.color_affine = nn.Conv2d(c[self.color_scale], NUMBERS * config.bins, 1)
        nn.init.zeros_(self.color_affine.weight)
        nn.init.zeros_(self.color_affine.bias)  # type: ignore[arg-type]
        self.guide = Guide() if config.bins > 1 else None
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        structure: Tensor,
        structure_features: Tensor,
        appearance_tokens: Tensor,
        full_structure: Tensor | None = None,
        *,
        strength: float | Tensor = 1.0,
        with_pixels: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Paint.

        Args:
            structure: (B, 3, H, W) in [0, 1], any size: padded to the stride by reflection and cropped back.
            structure_features: deepest keys of the structure image's patches, (B, D, h, w); any grid, it is resized.
            appearance_tokens: (B, M, C).
            full_structure: the structure images at the size that is wanted of the output; without gradients.
            strength: share of the change that is made, from 0 (none) to 1.
            with_pixels: also return the change of pixels as `decode` gives it, times the strength, (B, 3, H, W).

        Returns:
            (B, 3, H, W) in [0, 1], of the size of the structure images, or of the full ones; with pixels, a pair: these
            and the change of pixels, of the size of the structure images.
        """
        maps = self.encode(structure, structure_features, appearance_tokens)
        change = self.decode(maps, appearance_tokens, structure).times(strength)
        painted = self.apply_change(structure, change, full_structure)
        h, w = structure.shape[-2:]
        return (painted, change.pixels[..., :h, :w]) if with_pixels else painted

    def apply_change(self, structure: Tensor, change: Change, full_structure: Tensor | None = None) -> Tensor:
        """The structure images, or the full ones, with a change from `decode` made; arguments as for painting."""
        if full_structure is not None:
            return recolor_at_full_size(structure, self.finish(structure, change), self.guide, full_structure)
        logits, added = self._logits_and_added(structure, change)
        h, w = structure.shape[-2:]
        return to_colors(logits + (added - fine_colors(added) if self.keeps_fine_colors else added))[..., :h, :w]

    def change(self, structure: Tensor, structure_features: Tensor, appearance_tokens: Tensor) -> Change:
        """The finished change of structure images, at their size; arguments as for painting."""
        maps = self.encode(structure, structure_features, appearance_tokens)
        return self.finish(structure, self.decode(maps, appearance_tokens, structure))

    def finish(self, structure: Tensor, change: Change) -> Change:
        """A change from `decode` at the size of the structure images, (B, 3, H, W) in [0, 1].

        Its pixels also cancel fine contrasts of colors, those of the maps too, if the generator keeps the structure's.
        """
        h, w = structure.shape[-2:]
        pixels = change.pixels
        if self.keeps_fine_colors:
            pixels = pixels - fine_colors(self._logits_and_added(structure, change)[1])
        return Change(change.grid, pixels[..., :h, :w], (h / self.cell, w / self.cell))

    def _logits_and_added(self, structure: Tensor, change: Change) -> tuple[Tensor, Tensor]:
        """Of the padded images, as an exported graph sees them: what is filtered must not depend on who crops."""
        padded = _pad_to(structure, self.stride)
        rows, columns = (centers(n, n / self.cell, structure.device) for n in padded.shape[-2:])
        return logits_and_added(padded, change.grid, change.pixels, self.guide, rows, columns)

    def encode(self, structure: Tensor, structure_features: Tensor, appearance_tokens: Tensor) -> list[Tensor]:
        """The encoder's feature map of each scale, finest first; arguments as for painting."""
        dtype = self.stem.weight.dtype
        appearance_tokens, pooled = self._tokens(appearance_tokens)
        normed = self.structure_norm(rearrange(structure_features, "b d h w -> b h w d"))
        features = self.structure_proj(rearrange(normed, "b h w d -> b d h w").to(dtype))

        x = self.stem((_pad_to(structure, self.stride) * 2 - 1).to(dtype))
        maps = [x]
        for i, (downsample, stage) in enumerate(zip(self.downsample, self.down, strict=True)):
            x = downsample(x)
            if i == len(self.down) - 1:
                x = x + F.interpolate(features, x.shape[-2:], mode="bilinear", align_corners=False)
            x = self._run(stage, x, pooled, appearance_tokens)
            maps.append(x)
        return maps

    def decode(self, maps: list[Tensor], appearance_tokens: Tensor, structure: Tensor) -> Change:
        """From these maps to the change of structure images (B, 3, H, W) in [0, 1], padded to the stride.

        It may hold fine contrasts of colors; see `finish`.
        """
        finest, *coarser = maps
        grid, x = self.decode_to_half(coarser, appearance_tokens, self.edge_weights(structure))
        x = self._climb(self.upsample[-1], self.up[-1], x, finest, *self._tokens(appearance_tokens))
        h, w = x.shape[-2:]
        return Change(grid, self.to_rgb(x).float(), (h / self.cell, w / self.cell))

    def edge_weights(self, structure: Tensor) -> Tensor | None:
        """How cells of the grid are divided along the edges of structure images (B, 3, H, W) in [0, 1], if they are."""
        if self.parts == 1:
            return None
        return edge_weights(_pad_to(structure, self.stride), self.cell * self.parts, self.parts)

    def decode_to_half(
        self, maps: list[Tensor], appearance_tokens: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """From all maps but the finest to the grid of color maps, and features at half of the padded images' sides.

        Args:
            maps, appearance_tokens: as for `decode`.
            weights: of the structure images, from `edge_weights`.
        """
        tokens = self._tokens(appearance_tokens)
        *skips, x = maps
        for upsample, stage in zip(self.upsample[:-1], self.up[:-1], strict=True):
            x = self._climb(upsample, stage, x, skips.pop(), *tokens)
            if 1 + len(skips) == self.color_scale:
                grid = self.color_affine(x).float()
        return grid if weights is None else upsample_along_edges(grid, weights), x

    def _climb(
        self, upsample: nn.Module, stage: nn.Module, x: Tensor, skip: Tensor, tokens: Tensor, pooled: Tensor
    ) -> Tensor:
        """One scale finer."""
        # projected first: four times fewer pixels. Bilinear, because nearest leaves squares behind.
        x = skip + F.interpolate(upsample(x), skip.shape[-2:], mode="bilinear", align_corners=False)
        return self._run(stage, x, pooled, tokens)

    def _tokens(self, appearance_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Appearance tokens in the weights' precision, and what they say together, (B, C)."""
        appearance_tokens = appearance_tokens.to(self.stem.weight.dtype)
        return appearance_tokens, self.token_pool(appearance_tokens).mean(1)

    def _run(self, stage: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False)
        return stage(*inputs)


class UNetStage(nn.Module):
    """The work at one scale: residual blocks, each followed by attention where the scale is coarse enough."""

    def __init__(self, config: UNetConfig, scale: int, blocks: int) -> None:
        super().__init__()
        channels, tokens = config.channels[scale], config.token_channels
        attending = blocks if scale >= config.attention_from else 0
        self.blocks = nn.ModuleList(_ResidualBlock(channels, tokens) for _ in range(blocks))
        self.cross_attn = nn.ModuleList(CrossAttention(channels, tokens, config.heads) for _ in range(attending))
        self.mlp = nn.ModuleList(ResidualMlp(channels) for _ in range(attending))

    def forward(self, x: Tensor, pooled: Tensor, appearance_tokens: Tensor) -> Tensor:
        """Features (B, K, h, w) to the same shape, given the pooled (B, C) and all appearance tokens (B, M, C)."""
        h = x.shape[-2]
        for i, block in enumerate(self.blocks):
            x = block(x, pooled)
            if self.cross_attn:
                pixels = rearrange(x, "b c h w -> b (h w) c")
                pixels = self.mlp[i](self.cross_attn[i](pixels, appearance_tokens))
                x = rearrange(pixels, "b (h w) c -> b c h w", h=h)
        return x


class _ResidualBlock(nn.Module):
    """Two convolutions; between them the pooled appearance tokens scale and shift the channels (FiLM, AdaGN)."""

    def __init__(self, channels: int, token_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), _Conv(channels, channels)
        self.norm2, self.modulation = _norm(channels), nn.Linear(token_channels, 2 * channels)
        self.conv2 = _Conv(channels, channels)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        scale, shift = self.modulation(pooled)[..., None, None].chunk(2, 1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden) * (1 + scale) + shift))


class _Conv(nn.Conv2d):
    """3 x 3, with the border repeated around it: zeros would tell where it is, and training paints a frame there."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(repeat_border(x, 1))


def pixel_head(channels: int, changes: int = 3) -> nn.Sequential:
    """Features (B, C, H, W) to changes of the logits of colors at each of their places: none at first."""
    change = _Conv(channels, changes)
    nn.init.zeros_(change.weight)
    nn.init.zeros_(change.bias)  # type: ignore[arg-type]
    return nn.Sequential(_norm(channels), nn.SiLU(), change)


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
