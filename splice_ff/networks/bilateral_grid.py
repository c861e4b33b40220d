"""Affine maps of colors in a bilateral grid: coarse in place, and yet as sharp as the image they are read with.

HDRNet (Gharbi et al., arXiv:1707.02880) predicts, from a small image, a grid of affine maps over place and brightness;
each pixel of the large image reads its map at its own place and at the value of a guide, a learned gray version of
itself. Two sides of an edge differ in the guide, so they get different maps, and the change of maps follows the edge
and not the coarse cell. Xia et al. (arXiv:2004.10955) transfer style so. The network works at low resolution alone; at
full size there is nothing but the reading, called slicing.

A grid of one bin has no third axis: its maps depend on the place alone, and there is no guide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from splice_ff.utils.color import LUMA
from splice_ff.utils.resize import downsample, enlarge_along_edges, guided_upsample

NUMBERS = 12
"""Of an affine map of three colors: a matrix and a shift."""
MARGIN = 0.02
"""Colors are brought this far inside [0, 1] before the logit, so that black and white can still be changed."""
HIDDEN = 8
BAND = 2**18
"""Pixels that are sliced at once: each takes some 300 bytes on the way."""


class Change(NamedTuple):
    """What a network wants done to images."""

    grid: Tensor
    """(B, 12 x bins, h, w): affine maps of the logits of colors, as what is added to them."""
    pixels: Tensor
    """(B, 3, H, W): what is added to the logits of every pixel besides; it may cancel some of what the maps add."""
    extent: tuple[float, float]
    """Height and width of the images in cells of the grid; what the grid has beyond belongs to their padding."""

    def times(self, strength: float | Tensor) -> Change:
        """A share of the change: 0 leaves the images as they are, 1 is all of it, a straight line in logits between.

        Appearance tokens mixed with the structure image's own act like a switch: half way, little has changed.
        """
        return self._replace(grid=self.grid * strength, pixels=self.pixels * strength)


class Guide(nn.Module):
    """Where a color lies along the grid's third axis: its luma at first, plus what a pointwise network learns."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(3, HIDDEN, 1), nn.Conv2d(HIDDEN, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 1, H, W), float32: 0 and 1 are the ends of the axis."""
        red, green, blue = (images[:, i : i + 1].float() * share for i, share in enumerate(LUMA))
        learned: Tensor = self.out(F.silu(self.into(images.to(self.into.weight.dtype))))
        return red + green + blue + learned.float()


def slice_grid(grid: Tensor, guide: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Read a bilateral grid at every pixel, by trilinear interpolation; beyond its outer centers it is constant.

    First between the lines of the grid, once for a whole row of pixels, then between columns and bins: half the work of
    sampling in three dimensions, and ONNX has the operator for two.

    Args:
        grid: (B, C, D, h, w): D bins whose centers lie at (k + 1/2) / D of the guide.
        guide: (B, 1, H, W), 0 to 1; needed unless D is 1.
        rows, columns: where the pixels' centers lie, in cells from the grid's corner, (H,) and (W,): the center of the
            first cell is at 1/2.

    Returns:
        (B, C, H, W), float32.
    """
    batch, height, width = len(grid), *grid.shape[-2:]
    place = (rows - 0.5).clamp(0, height - 1)
    above = place.floor()
    upper, lower = (grid.float().index_select(-2, y.long()) for y in (above, (above + 1).clamp(max=height - 1)))
    between = torch.lerp(upper, lower, (place - above)[:, None])
    lines = batch * rows.shape[0]  # not `len`: a traced graph would hold it as a constant
    across = (2 / width * columns - 1).expand(lines, 1, -1)
    along = torch.zeros_like(across) if guide is None else rearrange(guide * 2 - 1, "b 1 y x -> (b y) 1 x")
    sliced = F.grid_sample(
        rearrange(between, "b c d y x -> (b y) c d x"),
        torch.stack([across, along], -1),
        padding_mode="border",
        align_corners=False,
    )
    return rearrange(sliced, "(b y) c 1 x -> b c y x", b=batch)


def recolor(images: Tensor, grid: Tensor, pixels: Tensor, guide: Guide | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], changed; see `Change`, and for rows and columns `slice_grid`."""
    logits, added = logits_and_added(images, grid, pixels, guide, rows, columns)
    return to_colors(logits + added)


def logits_and_added(
    images: Tensor, grid: Tensor, pixels: Tensor, guide: Guide | None, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits of images' colors, and what a change adds to them, (B, 3, H, W); arguments as for `recolor`."""
    maps = rearrange(grid, "b (c d) y x -> b c d y x", c=NUMBERS)
    at = guide(images) if guide is not None else None
    matrix, shift = slice_grid(maps, at, rows, columns).split((9, 3), 1)
    matrix = rearrange(matrix, "b (o i) y x -> b o i y x", o=3)
    logits = to_logits(images)
    added = shift + pixels.float()
    for i in range(3):
        added = added + matrix[:, :, i] * logits[:, i, None]
    return logits, added


def to_logits(images: Tensor) -> Tensor:
    """Logits of colors in [0, 1]."""
    return torch.logit(images.float() * (1 - 2 * MARGIN) + MARGIN)


def to_colors(logits: Tensor) -> Tensor:
    """Colors in [0, 1] of changed logits."""
    return ((torch.sigmoid(logits) - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)


def centers(count: int, extent: float, device: torch.device) -> Tensor:
    """Where the centers of so many rows or columns lie, in cells, if all of them are `extent` cells long: (count,)."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * (extent / count)


@torch.no_grad()
def recolor_in_bands(images: Tensor, change: Change, guide: Guide | None) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], changed a few rows at a time: large ones fit in memory."""
    height, width = images.shape[-2:]
    rows, columns = (centers(n, e, images.device) for n, e in zip((height, width), change.extent, strict=True))
    painted = torch.empty_like(images, dtype=torch.float32)
    step = max(1, BAND // (len(images) * width))
    for top in range(0, height, step):
        band = slice(top, top + step)
        painted[..., band, :] = recolor(
            images[..., band, :], change.grid, change.pixels[..., band, :], guide, rows[band], columns
        )
    return painted


@torch.no_grad()
def recolor_at_full_size(structure: Tensor, change: Change, guide: Guide | None, full_structure: Tensor) -> Tensor:
    """Structure images at another size, changed as a network wanted it at the working size.

    With a guide, larger images are sliced at their own size, and the change of pixels is enlarged along their edges.
    Without one the painted image is enlarged so: maps that obey no edges of the large image would blur its colors.
    Smaller images take the change of logits at the working size, reduced: their own detail stays.

    Args:
        structure: (B, 3, h, w) in [0, 1], what the network was given.
        change: what it answered.
        guide: of the grid.
        full_structure: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    if guide is not None and full_structure.shape[-1] > structure.shape[-1]:
        pixels = enlarge_along_edges(change.pixels, structure, full_structure)
        return recolor_in_bands(full_structure, change._replace(pixels=pixels), guide)
    painted = recolor_in_bands(structure, change, guide)
    if full_structure.shape[-1] > structure.shape[-1]:
        return guided_upsample(painted, structure, full_structure)
    if full_structure.shape[-2:] == structure.shape[-2:]:
        return painted
    return to_colors(to_logits(full_structure) + downsample(to_logits(painted) - to_logits(structure), full_structure))
