"""The least time that a piece of work could take: its operations over the rate of a plain matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from splice_ff.utils.machine import matmul_rate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SENSIBLE = 0.25
"""Share of float32's rate below which bfloat16 is emulated, and not worth the time that measuring it takes."""


def count_operations(work: Callable[[], object]) -> int:
    """Do the work once and count the floating-point operations (an addition and a multiplication are two).

    Matrix products, convolutions and attention count, forward and, where the work calls it, backward; what is done
    element by element (norms, activations, resizing, the optimizer) does not. Compiled modules run uncompiled: their
    operators could not be seen.
    """
    with operation_counter() as operations:
        work()
        return operations()


@contextmanager
def operation_counter() -> Iterator[Callable[[], int]]:
    """While inside, the operations so far: see `count_operations`."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        yield counter.get_total_flops


def measure_rates(device: torch.device) -> dict[str, float]:
    """Operations a second of large matrix products, by precision: the best that this device was seen to reach."""
    rates = {name: matmul_rate(device, dtype, 256) for name, dtype in DTYPES.items()}  # an emulated one takes its time
    large = {name: max(matmul_rate(device, DTYPES[name]) for _ in range(3)) for name in sensible_precisions(rates)}
    return rates | large


def sensible_precisions(rates: dict[str, float]) -> list[str]:
    """float32, and bfloat16 unless the device only emulates it."""
    return [name for name, rate in rates.items() if rate >= SENSIBLE * rates["fp32"]]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Older versions of torch count attention on GPUs only.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
