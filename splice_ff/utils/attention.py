"""Attention by the kernel that is faster: torch's fused one, or plain products and a softmax.

On CPUs the fused kernel multiplies bfloat16 at a quarter of the rate of a matrix product. Plain products keep the T x T
weights in memory, so long sequences stay with the fused kernel; docs/speed.md has the measured times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_TOKENS = 1024
"""Up to so many tokens plain products are faster; of more, the weights of twelve layers would take gigabytes."""

_always_fused = ContextVar("always fused", default=False)


@contextmanager
def fused_attention() -> Iterator[None]:
    """While inside, the fused kernel, as on GPUs: for those who reckon a GPU's memory on a CPU."""
    token = _always_fused.set(True)
    try:
        yield
    finally:
        _always_fused.reset(token)


def prefers_plain_attention(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Whether plain products are faster than the fused kernel; under autocast, whatever the tensors' own dtype is.

    Args:
        device: of the tensors.
        dtype: of queries, keys and values.
        tokens: keys of a sequence.
    """
    if device.type != "cpu" or tokens > MOST_TOKENS or _always_fused.get():
        return False
    return (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype) is torch.bfloat16


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of (B, heads, N, d), (B, heads, M, d) and (B, heads, M, d): (B, heads, N, d)."""
    if not prefers_plain_attention(queries.device, queries.dtype, keys.shape[-2]):
        return F.scaled_dot_product_attention(queries, keys, values)
    return (queries * queries.shape[-1] ** -0.5 @ keys.mT).softmax(-1) @ values
