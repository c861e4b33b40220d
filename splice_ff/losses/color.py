"""The distance of an output's colors from the look's, which Splice lacks (term `color`).

Sliced Wasserstein distances of the pixels' Lab colors, wherever they are (Rabin et al., "Wasserstein Barycenter
and its Application to Texture Mixing", 2011):

    L_color = mean over directions u of  W_1 + W_2^2 / FAR  of  {<u, Lab(p)>: p in G(s, a)} and {<u, Lab(q)>: q in a}

W_1 is what evaluation measures. In it, a few pixels of a color that the look lacks, such as a pink mouth, cost next to
nothing; in the square of W_2 they cost much.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.utils.color import half_sphere, rgb_to_lab

SIDE = 64
"""Side, in pixels, of the averages that are compared: a fine pattern of colors looks like their mean."""
DIRECTIONS = 12
FAR = 20.0
"""Lab units between two colors from which on the square counts more."""


def color_loss(outputs: Tensor, appearances: Tensor) -> Tensor:
    """Compare colors.

    Args:
        outputs, appearances: (B, 3, H, W) and (B, 3, H', W') in [0, 1].

    Returns:
        The mean over the batch, a scalar, in Lab units: a shift of all colors by a short vector v costs about |v| / 2.
    """
    with torch.autocast(outputs.device.type, enabled=False):  # half precision would round colors to visible steps
        small = [F.adaptive_avg_pool2d(images.float(), SIDE) for images in (outputs, appearances)]
        colors = rgb_to_lab(torch.cat(small)).flatten(2)
        ours, theirs = (half_sphere(DIRECTIONS).to(colors) @ colors).sort(-1).values.chunk(2)
        distances = (ours - theirs).abs()
        return (distances + distances**2 / FAR).mean()
