"""How the images of a batch resemble each other, which a student's [CLS] tokens may learn as plain distances.

Similarity-preserving distillation (Tung and Mori, arXiv 1907.09682), with centered vectors. A linear head can read from
[CLS] what images hold even if their plain distances say little of it; the appearance loss takes plain distances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def relations(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Products of an image's vectors with another's, seen from the batch's mean: (B, B), with a mean diagonal of 1.

    Args:
        vectors: each (B, C), of variance about 1 in every channel.
        weights: how much each counts, whatever its C.
    """
    gram = torch.stack([w * _gram(v) / v.shape[1] for v, w in zip(vectors, weights, strict=True)]).sum(0)
    return _scaled(gram)


def relations_loss(cls: Tensor, wanted: Tensor) -> Tensor:
    """Share of the variance of the wanted relations (B, B) that tokens (B, D) of any scale do not show; a scalar."""
    return F.mse_loss(_scaled(_gram(cls)), wanted) / wanted.var()


def _gram(vectors: Tensor) -> Tensor:
    centered = vectors.float() - vectors.float().mean(0)
    with torch.autocast(vectors.device.type, enabled=False):
        return centered @ centered.T


def _scaled(gram: Tensor) -> Tensor:
    return gram / gram.diagonal().mean().clamp_min(1e-12)
