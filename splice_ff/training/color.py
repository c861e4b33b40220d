"""The distance of an output's colors from its appearance image's, which Splice does not have (`loss.color`).

The sliced Wasserstein-1 distance of the pixels' Lab colors, wherever they are (Rabin et al., "Wasserstein Barycenter
and its Application to Texture Mixing", 2011):

    L_color = mean over directions u of  W1({<u, Lab(p)>: p in G(s, a)}, {<u, Lab(q)>: q in a})
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.utils.color import half_sphere, rgb_to_lab

SIDE = 64
"""Side, in pixels, of the averages that are compared: a fine pattern of colors looks like their mean."""
DIRECTIONS = 12


def color_loss(outputs: Tensor, appearances: Tensor) -> Tensor:
    """Compare colors.

    Args:
        outputs, appearances: (B, 3, S, S) in [0, 1], of one size.

    Returns:
        The mean over the batch, a scalar, in Lab units: a shift of all colors by a vector v costs about |v| / 2.
    """
    with torch.autocast(outputs.device.type, enabled=False):  # half precision would round colors to visible steps
        small = F.adaptive_avg_pool2d(torch.cat([outputs, appearances]).float(), SIDE)
        colors = rgb_to_lab(small).flatten(2)
        ours, theirs = (half_sphere(DIRECTIONS).to(colors) @ colors).sort(-1).values.chunk(2)
        return (ours - theirs).abs().mean()
