"""Values that change over a run of steps."""

from __future__ import annotations

import math


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Half a cosine from `first` at step 0 to `last` at `steps`; flat before and after."""
    done = min(max(step / max(1, steps), 0.0), 1.0)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


def linear(first: float, last: float, step: int, steps: int) -> float:
    """A straight line from `first` at step 0 to `last` at `steps`; flat after. No steps: `last` at once."""
    return last if step >= steps else first + (last - first) * step / steps


def warmed_up(peak: float, step: int, warmup: int, steps: int) -> float:
    """A learning rate: a straight line up to `peak` at step `warmup`, then half a cosine to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return cosine(peak, 0.0, step - warmup, steps - warmup)
