"""The distance of an output's feature statistics from its appearance image's, which Splice lacks (`loss.style`).

The style loss of AdaIN (Huang and Belongie, arXiv:1703.06868), on maps F_k of a frozen network:

    L_style = mean over k of  (|mu(F_k(o)) - mu(F_k(a))|^2 + |sd(F_k(o)) - sd(F_k(a))|^2) / V_k

for an output o and its appearance image a, with means mu and deviations sd over places. V_k is the variance of (mu, sd)
over the batch's appearance images, so that two unrelated photographs are at about 2. A coat's pattern, which the [CLS]
token of a small ViT knows little of, is in these statistics; where things are is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def style_loss(outputs: Sequence[Tensor], appearances: Sequence[Tensor]) -> Tensor:
    """Compare feature statistics.

    Args:
        outputs: maps (B, C, h, w) of outputs, with gradients.
        appearances: as many of their appearance images, of which there are at least two.

    Returns:
        The mean over the batch, a scalar, at least 0.
    """
    distances = []
    with torch.autocast(outputs[0].device.type, enabled=False):
        for ours, theirs in zip(outputs, appearances, strict=True):
            wanted = _statistics(theirs)
            spread = wanted.var(0).sum() + 1e-6
            distances.append((_statistics(ours) - wanted).square().sum(1).mean() / spread)
    return torch.stack(distances).mean()


def _statistics(maps: Tensor) -> Tensor:
    """Means and deviations over places of (B, C, h, w): (B, 2 C)."""
    places = maps.float().flatten(2)
    deviation = (places.var(2, unbiased=False) + 1e-6).sqrt()
    return torch.cat([places.mean(2), deviation], 1)
