"""Adversarial examples, which make features hold still: their input gradients then look like things.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083; one step from a random
start is enough to train with, says Wong et al., "Fast is better than free", arXiv 2001.03994. That gradients of robust
features paint: Santurkar et al., "Image Synthesis with a Single (Robust) Classifier", arXiv 1906.09453.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from splice_ff.pretraining.config import AdversaryConfig

REACH = 1.25
"""Length of all steps together, in epsilons: a single step reaches the border from most random starts."""


def moved_up(images: Tensor, loss: Callable[[Tensor], Tensor], epsilon: float, settings: AdversaryConfig) -> Tensor:
    """Images near the given ones at which the loss is larger, without gradient.

    Args:
        images: (B, 3, H, W) in [0, 1].
        loss: images to a scalar; no gradient of its parameters is taken.
        epsilon: how far each image moves at most, in the units of its values.
        settings: norm and number of steps.

    Returns:
        (B, 3, H, W) in [0, 1], within `epsilon` of `images` in the norm of the settings.
    """
    change = _inside(torch.empty_like(images).uniform_(-epsilon, epsilon), epsilon, settings.norm)
    for _ in range(settings.steps):
        seen = (images + change).clamp(0, 1).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(seen), seen)
        step = REACH * epsilon / settings.steps
        change = _inside(change + step * _direction(gradient, settings.norm), epsilon, settings.norm)
    return (images + change).clamp(0, 1)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The change of length 1 in the norm along which the loss rises most."""
    return gradient.sign() if norm == "linf" else gradient / _length(gradient)


def _inside(change: Tensor, epsilon: float, norm: str) -> Tensor:
    """The change, no longer than `epsilon`."""
    return change.clamp(-epsilon, epsilon) if norm == "linf" else change * (epsilon / _length(change)).clamp(max=1)


def _length(change: Tensor) -> Tensor:
    """Euclidean norm of each image, (B, 1, 1, 1)."""
    return change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
