"""Which number format is the fastest on this device."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its matrix products are faster than float32's, else float32.

    GPUs are asked what they support. CPUs are timed (some 20 ms, once a process): with AMX bfloat16 is several
    times faster, with AVX512-bf16 alone it can be either, without both it is emulated and very slow.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    return max((torch.float32, torch.bfloat16), key=lambda dtype: matmul_rate(device, dtype))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product, best of five."""
    n = 8192 if device.type == "cuda" else 768
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=random).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds[1:])  # the first call also sets the kernel up
