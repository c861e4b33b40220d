"""Large images through the amortized UNet in bounded memory: tiles that meet without seams.

What a pixel of the output depends on is bounded: convolutions reach a known distance, attention goes to the appearance
tokens alone. With a margin of that distance around it, a tile is what one pass over the whole image would have made
there, so that tiles need no blending. Two things are not local, and are settled for the whole image beforehand:
GroupNorm's statistics, from one pass at a reduced size, and the map of structure features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splice_ff.networks.bilateral_grid import Change, recolor_at_full_size
from splice_ff.networks.cross_attention_unet import CrossAttentionUNet
from splice_ff.networks.fine_colors import PASSES

MAX_UNTILED = 1280 * 1280
"""Pixels up to which an image goes in one pass."""
CORE = 1024
"""Side, in pixels, of what a tile contributes; its margins come on top."""


@torch.no_grad()
def paint_in_tiles(
    unet: CrossAttentionUNet,
    structure: Tensor,
    structure_features: Tensor,
    appearance_tokens: Tensor,
    core: int = CORE,
    statistics_pixels: int = MAX_UNTILED,
    full_structure: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """What `unet(structure, structure_features, appearance_tokens, full_structure)` does, one tile at a time.

    Args:
        unet: the generator's image path; it is left as it is.
        structure: (B, 3, H, W) in [0, 1].
        structure_features: deepest keys of the whole structure images' patches, (B, D, h, w).
        appearance_tokens: (B, M, C).
        core: side of a tile without its margins, rounded up to the UNet's stride.
        statistics_pixels: most pixels of the pass that takes GroupNorm's statistics; with H * W or more they are
            exact, and so is the result, up to rounding.
        full_structure: the structure images at the size that is wanted of the output; as they are if None.
        strength: share of the change that is made, from 0 (none) to 1.

    Returns:
        (B, 3, H, W) in [0, 1], of the size of the full images.
    """
    full = structure if full_structure is None else full_structure
    painted = torch.empty_like(full)
    core, cell = -(-core // unet.stride) * unet.stride, unet.cell
    cells = [-(-side // unet.stride) * unet.stride // cell for side in structure.shape[-2:]]
    channels = unet.color_affine.out_channels
    for i in range(len(structure)):  # one by one: statistics belong to an image
        image, features, tokens = (t[i : i + 1] for t in (structure, structure_features, appearance_tokens))
        frozen = freeze_statistics(unet, _at_most(image, statistics_pixels), features, tokens)
        window = _Window(frozen.structure_proj, [-(-side // unet.stride) for side in image.shape[-2:]])
        frozen.structure_proj = window  # type: ignore[assignment]
        margin = reach(unet)
        grid, pixels = image.new_empty(1, channels, *cells), torch.empty_like(image)
        for top, bottom, above, below in _spans(image.shape[-2], core, margin):
            for left, right, before, after in _spans(image.shape[-1], core, margin):
                # where a tile does not end with a whole stride it ends with the image, which the UNet pads
                window.show(*(-(-edge // unet.stride) for edge in (above, below, before, after)))
                tile = frozen.change(image[..., above:below, before:after], features, tokens)
                pixels[..., top:bottom, left:right] = tile.pixels[
                    ..., top - above : bottom - above, left - before : right - before
                ]
                part = tile.grid[..., (top - above) // cell :, (left - before) // cell :]
                part = part[..., : core // cell, : core // cell]
                y, x = top // cell, left // cell
                grid[..., y : y + part.shape[-2], x : x + part.shape[-1]] = part
        extent = image.shape[-2] / cell, image.shape[-1] / cell
        change = Change(grid, pixels, extent).times(strength)
        painted[i : i + 1] = recolor_at_full_size(image, change, unet.guide, full[i : i + 1])
    return painted


def freeze_statistics(
    unet: CrossAttentionUNet, structure: Tensor, structure_features: Tensor, appearance_tokens: Tensor
) -> CrossAttentionUNet:
    """A copy whose GroupNorms use the statistics of one image (1, 3, H, W) whatever they are given.

    A GroupNorm with given statistics is what a BatchNorm computes in eval mode.
    """
    frozen = copy.deepcopy(unet).eval().requires_grad_(False)
    norms = {name: m for name, m in frozen.named_modules() if isinstance(m, nn.GroupNorm)}
    fixed: dict[str, nn.BatchNorm2d] = {}

    def record(name: str) -> Any:
        def hook(norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
            groups = inputs[0].float().unflatten(1, (norm.num_groups, -1)).flatten(2)
            variance, mean = torch.var_mean(groups, -1, correction=0)
            twin = nn.BatchNorm2d(norm.num_channels, norm.eps).to(mean.device, norm.weight.dtype)
            size = norm.num_channels // norm.num_groups
            twin.running_mean = mean[0].repeat_interleave(size).to(norm.weight.dtype)
            twin.running_var = variance[0].repeat_interleave(size).to(norm.weight.dtype)
            twin.weight, twin.bias = norm.weight, norm.bias
            fixed[name] = twin.eval()

        return hook

    handles = [norm.register_forward_pre_hook(record(name)) for name, norm in norms.items()]
    frozen(structure, structure_features, appearance_tokens)
    for handle in handles:
        handle.remove()
    for name, norm in fixed.items():
        frozen.set_submodule(name, norm)
    return frozen


def reach(unet: CrossAttentionUNet) -> int:
    """How far, in pixels, an output pixel looks; rounded up to the UNet's stride.

    At scale i a pixel is 2^i wide: each 3x3 convolution there reaches one further, and so does the bilinear step up
    to the next finer scale.
    """
    pixels = 2  # the stem and the last convolution
    pixels += PASSES if unet.keeps_fine_colors else 0  # of a mean over 3 x 3 pixels
    for i, (down, up) in enumerate(zip(unet.down, reversed(unet.up), strict=True)):
        finer, here = 2**i, 2 ** (i + 1)
        pixels += finer  # the convolution that halves the sides
        pixels += here * _convolutions(down)
        pixels += here  # bilinear enlargement
        pixels += finer * _convolutions(up)
    return -(-pixels // unet.stride) * unet.stride


def _convolutions(scale: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in scale.modules())


def _spans(length: int, core: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, end) of what each tile contributes, and of what it needs to see."""
    for start in range(0, length, core):
        end = min(start + core, length)
        yield start, end, max(0, start - margin), min(length, end + margin)


def _at_most(image: Tensor, pixels: int) -> Tensor:
    h, w = image.shape[-2:]
    factor = (pixels / (h * w)) ** 0.5
    if factor >= 1:
        return image
    sides = [max(1, int(side * factor)) for side in (h, w)]
    return F.interpolate(image, sides, mode="bilinear", antialias=True)


class _Window(nn.Module):
    """Part of the whole image's map of structure features, at the coarsest scale."""

    def __init__(self, project: nn.Module, size: list[int]) -> None:
        super().__init__()
        self.project, self.size = project, size

    def show(self, top: int, bottom: int, left: int, right: int) -> None:
        """Choose the part, in pixels of the coarsest scale."""
        self.part = slice(top, bottom), slice(left, right)

    def forward(self, structure_features: Tensor) -> Tensor:
        whole = F.interpolate(self.project(structure_features), self.size, mode="bilinear", align_corners=False)
        return whole[(..., *self.part)]
