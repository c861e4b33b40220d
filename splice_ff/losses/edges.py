"""Edges that the structure image lacks, which Splice does not penalize (term `edges`).

A [CLS] token does not say where things are: eyes painted beside the eyes bring it as near as the eyes themselves.

    L_edges = mean over pixels of  max(0, |grad Lab(o)| - c M(|grad Lab(s)|) - mean |grad Lab(a)| / 2) / SCALE

for an output o, its structure image s and its appearance image a. M is the largest within REACH pixels, and c, at
least 1, is how much more contrast the output has: a black and white cat may have stronger edges than the gray one whose
place it takes, but where that one had some. Anywhere, half of the look's mean gradient is free: of a rough look some
texture, and not what stands out in it. Edges that are lost cost nothing here; the structure loss sees to them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.utils.color import rgb_to_lab
from splice_ff.utils.resize import reduce_shorter_side

SIDE = 80
"""Shorter side, in pixels, at which edges are compared: finer than eyes, coarser than hairs."""
REACH = 2
"""Pixels that an edge may move at that size."""
SCALE = 10.0
"""Lab units a pixel, of an edge that is plainly seen."""


def edge_loss(outputs: Tensor, structures: Tensor, appearances: Tensor) -> Tensor:
    """Compare edges.

    Args:
        outputs, structures: (B, 3, H, W) in [0, 1], of one size.
        appearances: (B, 3, H', W') in [0, 1].

    Returns:
        The mean over the batch, a scalar, at least 0.
    """
    with torch.autocast(outputs.device.type, enabled=False):  # half precision would make edges of smooth shading
        ours, theirs, looks = (
            rgb_to_lab(reduce_shorter_side(x.float(), SIDE)) for x in (outputs, structures, appearances)
        )
        contrast = (_contrast(ours.detach()) / _contrast(theirs)).clamp(min=1)
        known = F.max_pool2d(_gradients(theirs), 2 * REACH + 1, 1, REACH)
        usual = _gradients(looks).mean((2, 3), keepdim=True)
        return F.relu(_gradients(ours) - contrast * known - usual / 2).mean() / SCALE


def _contrast(lab: Tensor) -> Tensor:
    """Deviation of colors from their mean, (B, 1, 1, 1), in Lab units, and not 0."""
    return lab.var((2, 3), unbiased=False).sum(1)[:, None, None, None].sqrt() + 1e-3


def _gradients(lab: Tensor) -> Tensor:
    """Length of the gradient of all three channels, (B, 1, H, W), in Lab units a pixel."""
    padded = F.pad(lab, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return (across**2 + down**2).sum(1, keepdim=True).clamp(min=1e-12).sqrt()
