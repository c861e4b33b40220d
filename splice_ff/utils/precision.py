"""Which number format is the fastest on this device."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its matrix products are faster than float32's, else float32.

    GPUs are asked what they support. CPUs are timed, once a process, on products small enough not to be felt: with
    AMX bfloat16 is several times faster, with AVX512-bf16 alone it can be either, without both it is emulated and a
    hundred times slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    return max((torch.float32, torch.bfloat16), key=lambda dtype: matmul_rate(device, dtype, 256))


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int | None = None) -> float:
    """Floating-point operations a second of a product of two n x n matrices, best of five.

    Without n, of a size that keeps the device busy.
    """
    n = n or (8192 if device.type == "cuda" else 512)
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
