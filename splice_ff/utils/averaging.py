"""The moving average of a model's weights (EMA), as Polyak and Juditsky, 1992, average the iterates."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, for all parameters; buffers stay as they are."""
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)


def ramped_decay(decay: float, step: int) -> float:
    """The decay at a step, counted from 1: smaller at first, so that the initial weights do not linger."""
    return min(decay, step / (step + 9))
