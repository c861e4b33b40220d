"""The kernel by which sets of features are compared, in evaluation and in training."""

from __future__ import annotations

from torch import Tensor


def polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(x . y / C + 1)^3 of all pairs of features, (N, C) and (M, C) to (N, M): KID's kernel (arXiv:1801.01401)."""
    return (a @ b.mT / a.shape[1] + 1) ** 3
