"""Metrics of the pixels. Images (1, 3, H, W) in [0, 1]; each metric is one number.

Splice's losses see features alone. A model that was trained with the terms `color`, `texture` or `edges`, as
`everyday` was, and refining, which penalizes edges, lower the color and texture distances or raise the edge
agreement.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from splice_ff.utils.color import half_sphere, rgb_to_lab
from splice_ff.utils.resize import resize_shorter_side

SIZE = 256
"""Shorter side, in pixels, at which color, texture and edges are compared: sizes of files should not matter."""
QUANTILES = 1024
DIRECTIONS = 32
PATCH = 7
TILE, PERIOD = 64, 8
NOISE = 0.01
"""Variance of L* that counts as nothing: below what 8 bits resolve."""


def color_distance(output: Tensor, appearance: Tensor) -> float:
    """Sliced Wasserstein-1 distance of the two images' Lab colors, wherever they are; 0 or more, in Lab units.

    Rabin et al., "Wasserstein Barycenter and its Application to Texture Mixing", 2011. A shift of all colors by a
    vector v gives |v| / 2, the mean over directions.
    """
    ours, theirs = (rgb_to_lab(resize_shorter_side(x, SIZE))[0].flatten(1) for x in (output, appearance))
    directions = half_sphere(DIRECTIONS).to(ours)
    return _wasserstein(directions @ ours, directions @ theirs)


def texture_distance(output: Tensor, appearance: Tensor) -> float:
    """Sliced Wasserstein-1 distance of 7x7 patches of L*, their mean removed; mean of a coarse and a fine scale.

    After Karras et al., "Progressive Growing of GANs", 2018, section 5. A patch's projection on a random direction
    is its response to a random filter. Color and brightness do not count; contrast does.
    """
    random = torch.Generator().manual_seed(0)
    filters = torch.randn(DIRECTIONS, 1, PATCH, PATCH, generator=random)
    filters = filters - filters.mean((-2, -1), keepdim=True)
    filters = (filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).to(output)
    scales = []
    for size in (SIZE, SIZE // 2):
        ours, theirs = (_lightness(resize_shorter_side(x, size)) for x in (output, appearance))
        scales.append(_wasserstein(*(F.conv2d(x, filters)[0].flatten(1) for x in (ours, theirs))))
    return sum(scales) / len(scales)


def edge_agreement(output: Tensor, structure: Tensor) -> float:
    """Cosine, over all pixels, of the two images' edge fields, in [-1, 1]: 1 where the same edges run the same way.

    An edge is its gradient of L* with the angle doubled (Granlund 1978), so that from dark to light and from light
    to dark are one: a black cat on white keeps its edges as a white cat on black. Images of one size.
    """
    ours, theirs = (_edges(_lightness(resize_shorter_side(x, SIZE))) for x in (output, structure))
    return F.cosine_similarity(ours.flatten().cpu().double(), theirs.flatten().cpu().double(), dim=0).item()


def checkerboard(output: Tensor) -> float:
    """Amplitude, in L*, of what repeats every 8 pixels: the frequencies of strides 2, 4 and 8; 0 or more.

    Odena et al., "Deconvolution and Checkerboard Artifacts", 2016, name the artifact. The fine detail of each tile of
    64x64 pixels is averaged over pixels that lie alike in the 8x8 raster, and what averages of noise would have is
    subtracted. The median tile counts, as a straight edge of the image repeats in few tiles and the artifact in all.
    The image is taken at its own size, of at least 66 pixels a side: resizing would erase the pattern.
    """
    detail = _fine_detail(_lightness(output))
    tiles = detail.unfold(-2, TILE, TILE).unfold(-2, TILE, TILE)[0, 0]
    folded = rearrange(tiles, "i j (y a) (x b) -> (i j) (y x) (a b)", a=PERIOD, b=PERIOD)
    chance = folded.var(1).mean(-1) / folded.shape[1]
    energy = folded.mean(1).square().mean(-1) - chance
    return math.sqrt(max(0.0, energy.median().item()))


def high_frequency_excess(output: Tensor, structure: Tensor, appearance: Tensor) -> float:
    """Fine detail beyond that of both inputs, in dB; 0 where the output has no more than the richer of them.

    The appearance image is brought to the structure image's shorter side; output and structure image have one size.
    """
    appearance = resize_shorter_side(appearance, min(structure.shape[-2:]))
    ours, *inputs = (_fine_detail(_lightness(x)).var().item() + NOISE for x in (output, structure, appearance))
    return max(0.0, 10 * math.log10(ours / max(inputs)))


def _lightness(rgb: Tensor) -> Tensor:
    """L* as (1, 1, H, W)."""
    return rgb_to_lab(rgb)[:, :1]


def _fine_detail(lightness: Tensor) -> Tensor:
    """An image without its 3x3 binomial average: the highest frequencies whole, DC gone."""
    binomial = torch.tensor([1.0, 2.0, 1.0]).to(lightness) / 4
    return lightness[..., 1:-1, 1:-1] - F.conv2d(lightness, torch.outer(binomial, binomial)[None, None])


def _edges(lightness: Tensor) -> Tensor:
    """Gradients by Scharr's filter with the angle doubled, as (2, H - 2, W - 2)."""
    down = torch.outer(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([3.0, 10.0, 3.0])).to(lightness) / 32
    y, x = F.conv2d(lightness, torch.stack([down, down.T])[:, None])[0]
    return torch.stack([x * x - y * y, 2 * x * y]) / torch.hypot(x, y).clamp_min(1e-6)


def _wasserstein(a: Tensor, b: Tensor) -> float:
    """Mean Wasserstein-1 distance of corresponding rows of (K, N) and (K, M), from their quantiles."""
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    ordered = [np.sort(x.cpu().numpy(), -1) for x in (a, b)]  # several times faster than torch's on a CPU
    ours, theirs = (x[:, (at * x.shape[-1]).astype(int)] for x in ordered)
    return float(np.abs(ours - theirs).mean())
