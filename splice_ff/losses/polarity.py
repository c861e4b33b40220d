"""What is dark on light stays dark on light, which Splice does not ask for (term `polarity`).

Self-similarity has no sign: where a dark eye turns bright, every loss of Splice is content. Blobs of the structure
image, where the determinant of the Hessian of lightness is positive (Lindeberg, "Feature Detection with Automatic Scale
Selection", 1998), keep the sign of their Laplacian:

    L_polarity = sum over sigma of  mean over pixels of  w max(0, -sign(lap s) sigma^2 lap o) / SCALE
    w = min(1, sigma^2 sqrt(max(0, det H s)) / FULL)

in which s and o are L* of structure image and output, blurred by a Gaussian of sigma pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from splice_ff.utils.color import rgb_to_lab
from splice_ff.utils.resize import reduce_shorter_side

SIDE = 80
"""Shorter side, in pixels, at which images are compared."""
SIGMAS = (1.5, 3.0)
"""In pixels of that size: an animal's eye or nose."""
FULL = 6.0
"""L* units of a blob that counts in full."""
SCALE = 10.0
"""L* units of a Laplacian that plainly has the wrong sign."""


def polarity_loss(outputs: Tensor, structures: Tensor) -> Tensor:
    """Compare the signs of small shapes.

    Args:
        outputs, structures: (B, 3, H, W) in [0, 1], of one size.

    Returns:
        The mean over the batch, a scalar, at least 0.
    """
    with torch.autocast(outputs.device.type, enabled=False):  # half precision has coarser steps than second derivatives
        ours, theirs = (rgb_to_lab(reduce_shorter_side(x.float(), SIDE))[:, :1] for x in (outputs, structures))
        return torch.stack([_flipped(ours, theirs, sigma) for sigma in SIGMAS]).sum() / SCALE


def _flipped(ours: Tensor, theirs: Tensor, sigma: float) -> Tensor:
    size = 2 * min(round(3 * sigma), min(ours.shape[-2:]) - 1) + 1  # the blur mirrors at the border
    (across, down, mixed), (our_across, our_down, _) = (
        _second_derivatives(gaussian_blur(x, [size, size], [sigma, sigma])) for x in (theirs, ours)
    )
    blob = (sigma**2 * (across * down - mixed**2).clamp(min=0).sqrt() / FULL).clamp(max=1)
    return (blob * F.relu(-(across + down).sign() * sigma**2 * (our_across + our_down))).mean()


def _second_derivatives(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (B, 1, H, W) by finite differences: twice across, twice down, once each."""
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    center, up, down = padded[..., 1:-1, :], padded[..., :-2, :], padded[..., 2:, :]
    across = center[..., 2:] - 2 * center[..., 1:-1] + center[..., :-2]
    along = (up - 2 * center + down)[..., 1:-1]
    mixed = (down[..., 2:] - down[..., :-2] - up[..., 2:] + up[..., :-2]) / 4
    return across, along, mixed
