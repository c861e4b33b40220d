"""The style loss compares statistics of patches of output and look, wherever they are; Splice lacks it (term `style`).

A [CLS] token sums an image up; of a coat's pattern and a ground's color it says little. The patches' tokens x_l at the
output of block l say more, and their statistics do not say where. The style loss of AdaIN (Huang and Belongie,
arXiv:1703.06868), with the ViT for VGG:

    L_style = mean over l of  (|mu(x_l(o)) - mu(x_l(a))|^2 + |sd(x_l(o)) - sd(x_l(a))|^2) / |sd(x_l(a))|^2

for an output o and its appearance image a; mu and sd are means and deviations over patches. In units of the look's own
deviation, so that it needs no scale for each backbone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def style_layers(depth: int) -> list[int]:
    """The blocks l, from 0: at each quarter of the depth, and the last but one: of the last, only [CLS] is computed."""
    return sorted({max(depth * quarter // 4 - 1, 0) for quarter in (1, 2, 3)} | {max(depth - 2, 0)})


def token_statistics(tokens: Mapping[int, Tensor], prefix_tokens: int) -> Tensor:
    """Means and deviations over patches of tokens (B, T, D), by block: (B, blocks, 2, D) in float32."""
    patches = torch.stack([tokens[layer][:, prefix_tokens:].float() for layer in sorted(tokens)], 1)
    deviation = (patches.var(2, unbiased=False) + 1e-6).sqrt()
    return torch.stack([patches.mean(2), deviation], 2)


def style_loss(output: Tensor, appearance: Tensor) -> Tensor:
    """Compare statistics.

    Args:
        output, appearance: (B, blocks, 2, D), from `token_statistics`.

    Returns:
        The mean over batch and blocks, a scalar, at least 0; about 0.3 for two photographs and `vit_s14_robust`.
    """
    distance = (output - appearance).square().sum((2, 3))
    return (distance / appearance[:, :, 1].square().sum(2)).mean()
