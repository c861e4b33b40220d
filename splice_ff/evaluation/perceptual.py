"""LPIPS, FID and KID through torchmetrics, where it is installed and their networks' weights are in torch's cache.

Nothing is downloaded for them: a metric that cannot be had is left out, and the report says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from splice_ff.images import load_image

ALEXNET = "alexnet-owt-7be5be79.pth"
"""The file under which torchvision keeps the weights that LPIPS is defined with."""
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""The file under which torch-fidelity keeps the weights that FID and KID are defined with."""

Lpips = Callable[[Tensor, Tensor], float]
"""LPIPS of two images (1, 3, H, W) in [0, 1] of one size."""
SetDistances = Callable[[Mapping[str, Sequence[Path]], Sequence[Path]], dict[str, dict[str, float]]]
"""FID and KID of several sets of images, by name, to one more set."""
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
    return lambda ours, theirs: set_distances(ours, theirs, 2048, device), ""


@torch.no_grad()
def set_distances(
    ours: Mapping[str, Sequence[Path]], theirs: Sequence[Path], features: int | nn.Module, device: torch.device
) -> dict[str, dict[str, float]]:
    """How far sets of images are from another set, by the names of `ours` and of `SET_METRICS`.

    FID (Heusel et al., 2017) is biased upwards by small sets, so that it ranks only sets of one size. KID (Binkowski et
    al., 2018) is not biased; taken once over the whole sets instead of over random subsets, it does not vary either.

    Args:
        ours: sets of as many images as `theirs`.
        theirs: at least two images.
        features: width of Inception's features, or a network from uint8 images (B, 3, H, W) to features (B, F).
        device: where to compute.

    Raises:
        InputError: an image cannot be read.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.wrappers import FeatureShare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the memory that features of large sets take
        kid: Any = KernelInceptionDistance(features, subsets=1, subset_size=len(theirs), reset_real_features=False)
    fid: Any = FrechetInceptionDistance(features, reset_real_features=False)
    both: Any = FeatureShare({"fid": fid, "kid": kid}).to(device)  # one pass of the network an image

    def add(files: Sequence[Path], real: bool) -> None:
        for path in files:
            both.update(TF.to_dtype(load_image(path).rgb, torch.uint8, scale=True).to(device), real=real)

    add(theirs, real=True)
    found = {}
    for name, files in ours.items():
        both.reset()  # theirs are kept
        add(files, real=False)
        found[name] = {"fid": both["fid"].compute().item(), "kid": both["kid"].compute()[0].item()}
    return found


def _cached(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name
