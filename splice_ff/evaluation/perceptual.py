"""LPIPS, FID and KID through torchmetrics, where it is installed and their networks' weights are in torch's cache.

Nothing is downloaded for them: a metric that cannot be had is left out, and the report says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splice_ff.images import load_image

ALEXNET = "alexnet-owt-7be5be79.pth"
"""The file under which torchvision keeps the weights that LPIPS is defined with."""
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""The file under which torch-fidelity keeps the weights that FID and KID are defined with."""

Lpips = Callable[[Tensor, Tensor], float]
"""LPIPS of two images (1, 3, H, W) in [0, 1] of one size."""
SetDistances = Callable[[Sequence[tuple[Path, Path]]], dict[str, float]]
"""FID and KID of the pictures named first to those named second."""
SET_METRICS = {"fid": "FID", "kid": "KID"}


def find_lpips(device: torch.device) -> tuple[Lpips | None, str]:
    """LPIPS (Zhang et al., 2018), or None and the reason why it cannot be had."""
    if find_spec("torchmetrics") is None:
        return None, "LPIPS (torchmetrics is not installed)"
    if not (path := _cached(ALEXNET)).is_file():
        return None, f"LPIPS (no {path})"
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)

    @torch.no_grad()
    def lpips(a: Tensor, b: Tensor) -> float:
        return metric(a, b).item()  # of this pair, not the running mean

    return lpips, ""


def find_set_distances(device: torch.device) -> tuple[SetDistances | None, str]:
    """FID and KID with Inception's 2048 features, or None and the reason why they cannot be had."""
    for package in ("torchmetrics", "torch_fidelity"):
        if find_spec(package) is None:
            return None, f"FID and KID ({package} is not installed)"
    if not (path := _cached(INCEPTION)).is_file():
        return None, f"FID and KID (no {path})"
    return lambda files: set_distances(files, 2048, device), ""


@torch.no_grad()
def set_distances(
    files: Sequence[tuple[Path, Path]], features: int | nn.Module, device: torch.device
) -> dict[str, float]:
    """How far two sets of pictures are from each other, by the names of `SET_METRICS`.

    FID (Heusel et al., 2017) is biased upwards by small sets, so that it ranks only sets of one size. KID (Binkowski et
    al., 2018) is not biased; taken once over the whole sets instead of over random subsets, it does not vary either.

    Args:
        files: at least two pairs of pictures, the first of one set and the second of the other.
        features: width of Inception's features, or a network from images (B, 3, H, W) in [0, 1] to (B, F).
        device: where to compute.

    Raises:
        InputError: a picture cannot be read.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    fid: Any = FrechetInceptionDistance(features, normalize=True).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the memory that features of large sets take
        kid: Any = KernelInceptionDistance(features, subsets=1, subset_size=len(files), normalize=True).to(device)
    for pair in files:
        for path, real in zip(pair, (False, True), strict=True):
            image = load_image(path).rgb.to(device)
            fid.update(image, real=real)
            kid.update(image, real=real)
    return {"fid": fid.compute().item(), "kid": kid.compute()[0].item()}


def _cached(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name
