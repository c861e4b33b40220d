"""Independence from what the caller has set in torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_defaults(gradients: bool = True) -> Iterator[None]:
    """Inside, torch is as it is when it was just imported, whatever default dtype, device or mode the caller has set.

    Autocast is left as it is. Not for generators: the caller's code would run inside as well.

    Args:
        gradients: whether they are recorded.
    """
    before = torch.get_default_dtype()
    if before != torch.float32:  # all threads share it, so it is touched only where it must be
        torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False), torch.set_grad_enabled(gradients):
            yield
    finally:
        if before != torch.float32:
            torch.set_default_dtype(before)
