"""How much a backbone's [CLS] knows: labels by its nearest neighbors or a linear map, colors by a linear map."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from splice_ff.utils.color import rgb_to_lab
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import VIT_SIZE

NOISE = 8 / 255
NEIGHBORS = 15
REFERENCES = 0.7
"""Share of the images, the first ones, that the others are judged by."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties to choose from, as shares of the largest eigenvalue."""


@torch.inference_mode()
def cls_tokens(backbone: ViTFeatures, pixels: Tensor, size: int | None = None, batch_size: int = 64) -> Tensor:
    """Deepest [CLS] after the ViT's final norm, (N, D) float32 on the CPU.

    Args:
        backbone: with a [CLS] token.
        images: (N, 3, S, S) uint8.
        size: pixels to which they are resized; the ViT's own if None.
        batch_size: images a pass.
    """
    size = size or backbone.vit.patch_embed.img_size[0]
    device, found = backbone.mean.device, []
    for batch in pixels.split(batch_size):
        images = batch.to(device).float() / 255
        images = TF.resize(images, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        cls = backbone(images, cls=True).cls
        assert cls is not None
        found.append(backbone.vit.norm(cls[:, -1]).float().cpu())
    return torch.cat(found)


@torch.inference_mode()
def noise_response(backbone: ViTFeatures, pixels: Tensor, size: int = VIT_SIZE) -> dict[str, float]:
    """How far uniform noise of +-`NOISE` moves what the losses compare, as a share of the way to another image.

    Args:
        backbone: with a [CLS] token.
        images: (N, 3, S, S) uint8, two or more.
        size: pixels to which they are resized.

    Returns:
        `cls` and `keys`: mean squares of the change of the deepest [CLS] and of the keys' self-similarity, as shares of
        those between each image and the next; `contrast`: the latter for self-similarity, not as a share.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for batch in pixels[: len(pixels) // 2 * 2].split(16):  # no batch of one
        images = TF.resize(batch.float() / 255, [size, size], antialias=True)
        noise = NOISE * (2 * torch.rand(images.shape, generator=generator) - 1)
        distances = []
        calm, moved = (
            backbone(x.to(backbone.mean.device), cls=True, keys=[-1]) for x in (images, (images + noise).clamp(0, 1))
        )
        assert calm.cls is not None and moved.cls is not None
        for a, b in ((calm.cls[:, -1], moved.cls[:, -1]), (calm.self_similarity(), moved.self_similarity())):
            distances += [F.mse_loss(a, b), F.mse_loss(a, a.roll(1, 0))]
        found += [torch.stack(distances).double()] * len(batch)
    cls, cls_between, keys, keys_between = torch.stack(found).mean(0).tolist()
    return {"cls": cls / cls_between, "keys": keys / keys_between, "contrast": keys_between}


def color_statistics(pixels: Tensor) -> Tensor:
    """Mean and spread of L*, a*, b* of images (N, 3, S, S) uint8: (N, 6)."""
    found = []
    for batch in pixels.split(64):
        spread, mean = torch.std_mean(rgb_to_lab(batch.cpu().float() / 255), (-2, -1), correction=0)
        found.append(torch.cat([mean, spread], 1))
    return torch.cat(found)


def knn_accuracy(features: Tensor, labels: Sequence[str], references: int, k: int = NEIGHBORS) -> float:
    """Share of the images after the first `references` whose label most of their k nearest references have.

    Near is by cosine; of labels with as many votes the one with the larger sum of cosines wins.
    """
    names, places = _numbered(labels)
    directions = F.normalize(features.float(), dim=1)
    cosines, nearest = (directions[references:] @ directions[:references].T).topk(min(k, references), 1)
    votes = F.one_hot(places[:references][nearest], len(names)).float()
    score = votes.sum(1) + 1e-3 * (votes * cosines[..., None]).sum(1) / k
    return (score.argmax(1) == places[references:]).float().mean().item()


def linear_accuracy(features: Tensor, labels: Sequence[str], references: int) -> float:
    """The same for a linear map to one-hot labels, fitted to the references by ridge regression in closed form."""
    names, places = _numbered(labels)
    told = ridge(features, F.one_hot(places, len(names)).double(), references)
    return (told.argmax(1) == places[references:]).float().mean().item()


def r_squared(features: Tensor, targets: Tensor, references: int) -> Tensor:
    """How much of each target's variance on the images after the references a linear map tells: (C,), at most 1."""
    told, wanted = ridge(features, targets, references), targets[references:].double()
    missed = (wanted - told).square().mean(0)
    return (1 - missed / wanted.var(0, correction=0)).float()


def ridge(features: Tensor, targets: Tensor, references: int) -> Tensor:
    """Targets (N - references, C) predicted for the last images, from those of the first.

    Features are standardized; the penalty is the one that serves best on the last fifth of the references.
    """
    x, y = features.double(), targets.double()
    spread, mean = torch.std_mean(x[:references], 0)
    x = (x - mean) / spread.clamp_min(1e-6)
    fit = references * 4 // 5
    errors = [(_ridge(x[:references], y[:references], fit, p) - y[fit:references]).square().mean() for p in PENALTIES]
    return _ridge(x, y, references, PENALTIES[int(torch.stack(errors).argmin())])


def _ridge(x: Tensor, y: Tensor, count: int, penalty: float) -> Tensor:
    """Fitted to the first `count` rows, predicted for the others."""
    x_mean, y_mean = x[:count].mean(0), y[:count].mean(0)
    a, b = x[:count] - x_mean, y[:count] - y_mean
    gram = a.T @ a
    # An upper bound of the largest eigenvalue (the trace) would over-smooth; the norm is exact.
    gram += penalty * torch.linalg.matrix_norm(gram, 2) * torch.eye(len(gram), dtype=gram.dtype)
    return (x[count:] - x_mean) @ torch.linalg.solve(gram, a.T @ b) + y_mean


def measure(features: Tensor, pixels: Tensor, labels: Sequence[str] | None) -> dict[str, float]:
    """What a training run notes of held-out images: `knn` where there are labels, `color` and `spread` (R^2)."""
    references = round(REFERENCES * len(features))
    told = r_squared(features, color_statistics(pixels), references)
    found = {} if labels is None else {"knn": knn_accuracy(features, labels, references)}
    return found | {"color": told[:3].mean().item(), "spread": told[3:].mean().item()}


def with_labels(labels: Sequence[str], wanted: Collection[str]) -> list[int]:
    """Places of the images that have one of the wanted labels."""
    return [i for i, label in enumerate(labels) if label in wanted]


def _numbered(labels: Sequence[str]) -> tuple[list[str], Tensor]:
    names = sorted(set(labels))
    return names, torch.tensor([names.index(label) for label in labels])
