"""LPIPS, where torchmetrics is installed and AlexNet's weights are in torch's cache: nothing is downloaded for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALEXNET = "alexnet-owt-7be5be79.pth"
"""The file under which torchvision keeps the weights that LPIPS is defined with."""

NOT_FID = "FID and KID (not implemented: they compare sets of thousands of pictures, not pairs)"
Lpips = Callable[[Tensor, Tensor], float]
"""LPIPS of two images (1, 3, H, W) in [0, 1] of one size."""


def find_lpips(device: torch.device) -> tuple[Lpips | None, str]:
    """LPIPS (Zhang et al., 2018), or None and the reason why it cannot be had."""
    if find_spec("torchmetrics") is None:
        return None, "LPIPS (torchmetrics is not installed)"
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not path.is_file():
        return None, f"LPIPS (no {path})"
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)

    @torch.no_grad()
    def lpips(a: Tensor, b: Tensor) -> float:
        return metric(a, b).item()  # of this pair, not the running mean

    return lpips, ""
