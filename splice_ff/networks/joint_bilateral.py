"""Joint bilateral upsampling (Kopf et al., ACM Transactions on Graphics 26(3), 2007) of a grid of color maps.

A cell beside an animal is half animal and half ground. With one map for both, animals get a rim of another color, as
wide as a cell. So each cell is divided, and each part p takes a mean of the maps of its cell and of those around it, q:

    w(p, q) = exp(-|p - q|^2 / 2 NEAR^2) exp(-|I_p - I_q|^2 / 2 ALIKE^2)

in which I is the mean color of the part, or of the cell: what looks like ground takes the maps of cells of ground.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PARTS = 2
"""Of a cell, along each side: with 4 rims are hardly narrower, and steps of refining slower."""
NEAR = 0.8
"""In cells."""
ALIKE = 0.1
"""Of colors in [0, 1]."""


def upsample_along_edges(grid: Tensor, images: Tensor, cell: int) -> Tensor:
    """Divide the cells of a grid by what images show.

    Args:
        grid: (B, C, h, w).
        images: what it is to change, (B, 3, h x cell, w x cell) in [0, 1]; without gradients.
        cell: side of a cell, in pixels; a multiple of `PARTS`.

    Returns:
        (B, C, PARTS x h, PARTS x w), float32.
    """
    height, width = grid.shape[-2:]
    with torch.no_grad(), torch.autocast(grid.device.type, enabled=False):
        cells, parts = (F.avg_pool2d(images.float(), side) for side in (cell, cell // PARTS))
        parts = rearrange(parts, "b c (y i) (x j) -> (b y x) (i j) 1 c", i=PARTS, j=PARTS)
        difference = (parts - _around(cells)[:, None]).square().sum(-1)
        likeness = torch.exp(difference / (-2 * ALIKE**2)) + 1e-6  # where no cell is alike, the nearest count
        is_there = _around(torch.ones_like(cells[:, :1]), beyond=0.0)[:, None, :, 0]
        weights = likeness * _nearness(grid.device) * is_there
        weights = weights / weights.sum(-1, keepdim=True)
    with torch.autocast(grid.device.type, enabled=False):  # half precision would make steps of smooth shading
        means = torch.bmm(weights, _around(grid.float()))
    return rearrange(means, "(b y x) (i j) c -> b c (y i) (x j)", y=height, x=width, i=PARTS)


def _around(cells: Tensor, beyond: float | None = None) -> Tensor:
    """Of (B, C, h, w), each cell's value and those of the eight around it, (B x h x w, 9, C); the border repeats."""
    height, width = cells.shape[-2:]
    mode, value = ("replicate", None) if beyond is None else ("constant", beyond)
    padded = F.pad(cells, (1, 1, 1, 1), mode, value)
    shifted = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return rearrange(torch.stack(shifted, 1), "b k c y x -> (b y x) k c")


def _nearness(device: torch.device) -> Tensor:
    """(PARTS x PARTS, 9): the first factor of w, for each part of a cell, the cell itself and those around it."""
    places = (torch.arange(PARTS, device=device) + 0.5) / PARTS - 0.5
    along = torch.exp((places[:, None] - torch.arange(-1, 2, device=device)).square() / (-2 * NEAR**2))
    return torch.einsum("ia,jb->ijab", along, along).flatten(2).flatten(0, 1)
