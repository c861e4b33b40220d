"""Joint bilateral upsampling (Kopf et al., ACM Transactions on Graphics 26(3), 2007) of a grid of color maps.

A cell beside an animal is half animal and half ground. Where both are equally bright, the guide cannot tell them apart,
and with one map for both, animals get a rim of another color, as wide as a cell. So each cell is divided, and each part
p takes the weighted mean of the maps of its cell and of those around it, q:

    w(p, q) = exp(-|p - q|^2 / 2 SIGMA_SPACE^2) (exp(-|I_p - I_q|^2 / 2 SIGMA_COLOR^2) + FLOOR)

in which I is the mean color of the part, or of the cell: what looks like ground takes the maps of cells of ground.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SIGMA_SPACE = 0.8
"""In cells."""
SIGMA_COLOR = 0.1
"""Of colors in [0, 1]."""
FLOOR = 1e-6
"""Where no cell looks like a part, the nearest count."""


@torch.no_grad()
def edge_weights(images: Tensor, side: int, parts: int) -> Tensor:
    """What each part of a cell takes from the cells around it.

    Args:
        images: what the color maps are to change, (B, 3, h x side, w x side) in [0, 1].
        side: of a cell, in pixels; a multiple of `parts`.
        parts: of a cell, along each side.

    Returns:
        (B x h x w, parts x parts, 9), float32; they sum up to 1 over the 9 cells.
    """
    with torch.autocast(images.device.type, enabled=False):  # half precision would make steps of smooth shading
        cells, divided = (F.avg_pool2d(images.float(), pixels) for pixels in (side, side // parts))
        divided = rearrange(divided, "b c (y i) (x j) -> (b y x) (i j) 1 c", i=parts, j=parts)
        difference = (divided - _around(cells)[:, None]).square().sum(-1)
        color_weights = torch.exp(difference / (-2 * SIGMA_COLOR**2)) + FLOOR
        is_there = _around(torch.ones_like(cells[:, :1]))[:, None, :, 0]
        weights = color_weights * _space_weights(parts, images.device) * is_there
        return weights / weights.sum(-1, keepdim=True)


def upsample_along_edges(grid: Tensor, weights: Tensor) -> Tensor:
    """Divide the cells of a grid (B, C, h, w), float32, with `edge_weights`: (B, C, parts x h, parts x w)."""
    height, width, parts = *grid.shape[-2:], round(weights.shape[1] ** 0.5)
    with torch.autocast(grid.device.type, enabled=False):
        means = torch.bmm(weights, _around(grid))
    return rearrange(means, "(b y x) (i j) c -> b c (y i) (x j)", y=height, x=width, i=parts)


def _around(cells: Tensor) -> Tensor:
    """Of (B, C, h, w), each cell and the eight around it, (B x h x w, 9, C); zeros beyond the border."""
    height, width = cells.shape[-2:]
    padded = F.pad(cells, (1, 1, 1, 1))
    shifted = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return rearrange(torch.stack(shifted, 1), "b k c y x -> (b y x) k c")


def _space_weights(parts: int, device: torch.device) -> Tensor:
    """(parts x parts, 9): the first factor of w, for each part of a cell, the cell itself and those around it."""
    places = (torch.arange(parts, device=device) + 0.5) / parts - 0.5
    along = torch.exp((places[:, None] - torch.arange(-1, 2, device=device)).square() / (-2 * SIGMA_SPACE**2))
    return torch.einsum("ia,jb->ijab", along, along).flatten(2).flatten(0, 1)
