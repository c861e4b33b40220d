"""What the features hold, as colors: their first three principal components (paper, section 3.2, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from splice_ff.analysis.patches import patch_descriptors, prepare
from splice_ff.analysis.recipes import PCA_FACETS
from splice_ff.utils.machine import plain_torch
from splice_ff.vit.features import Features, ViTFeatures
from splice_ff.vit.spec import FACETS, VIT_SIZE

CLIPPED = 0.01
"""Share of the patches at either end of a component whose colors are clipped: outliers must not dull the rest."""


@dataclass(frozen=True)
class Basis:
    """Mean (D,) and the first principal components (3, D) of some descriptors."""

    mean: Tensor
    components: Tensor

    def project(self, descriptors: Tensor) -> Tensor:
        """(N, D) to (N, 3)."""
        return (descriptors - self.mean) @ self.components.mT


def principal_components(descriptors: Tensor, count: int = 3) -> Basis:
    """The first principal components of (N, D), in order of variance.

    Exact, from the covariance in float64, so that runs agree; the entry of largest magnitude is positive in each.
    """
    mean = descriptors.mean(0)
    centered = (descriptors - mean).double()
    components = torch.linalg.eigh(centered.mT @ centered).eigenvectors[:, -count:].mT.flip(0)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return Basis(mean, (components * largest.sign()).to(descriptors.dtype))


@plain_torch(gradients=False)
def pca(
    backbone: ViTFeatures,
    images: Sequence[Tensor],
    facets: Sequence[str] = PCA_FACETS,
    layers: Sequence[int] | None = None,
    *,
    joint: bool = False,
    mask: bool = False,
    size: int = VIT_SIZE,
) -> list[dict[tuple[str, int], Tensor]]:
    """The first three principal components of features as RGB. Each image passes through the ViT once.

    Args:
        backbone: the frozen ViT.
        images: (1, 3, H, W) each, in [0, 1], of any sizes.
        facets: of `PCA_FACETS`. `self_similarity` is that of the keys: a patch is described by its similarity to every
            token of the image (with `joint`: of all images).
        layers: from 0, or negative from the end; `spread_layers` if None.
        joint: one basis and one color scale for all images, so that a color means the same in each.
        mask: blacken the background and spread the colors over the rest; see `foreground`.
        size: shorter side, in pixels, of what the ViT sees.

    Returns:
        For each image, (facet, layer from 0) to an image (3, h, w) in [0, 1], one pixel a patch. `upsample_map` brings
        one to the image's size; all of them at that size could fill the memory.

    Raises:
        ImageError: something else than such images.
        IndexError: a layer that the ViT does not have.
    """
    layers = spread_layers(backbone.depth) if layers is None else layers
    inputs = [prepare(backbone, image, f"images[{i}]", size) for i, image in enumerate(images)]
    features = [_features(backbone, x, facets, layers, mask) for x in inputs]
    numbers = sorted({i % backbone.depth for i in layers})
    groups = [range(len(images))] if joint else [[i] for i in range(len(images))]
    maps: list[dict[tuple[str, int], Tensor]] = [{} for _ in images]
    for group in groups:
        members = [features[i] for i in group]
        kept = [foreground(member, numbers[-1]) for member in members] if mask else None
        for facet in facets:
            for layer in numbers:
                for i, colors in zip(group, _colors(members, facet, layer, kept), strict=True):
                    maps[i][facet, layer] = colors.cpu()
    return maps


def spread_layers(depth: int) -> list[int]:
    """Four layers spread evenly over a ViT, the deepest included; fewer where there are no four."""
    return sorted({max(0, depth * (i + 1) // 4 - 1) for i in range(4)})


def foreground(features: Features, layer: int) -> Tensor:
    """Which patches of one image show the object, (h, w) booleans, by the sign of the tokens' first component.

    Components have no natural sign; the background is the side that holds more of the patches along the border. Each
    image has its own component: the first that several share tells one image from the other.
    """
    descriptors = patch_descriptors(features, "tokens", layer)[0]
    side = (principal_components(descriptors, count=1).project(descriptors) > 0).view(features.grid)
    border = torch.cat([side[0], side[-1], side[:, 0], side[:, -1]])
    return ~side if border.float().mean() > 0.5 else side


def self_similarity_descriptors(keys: Sequence[Tensor]) -> list[Tensor]:
    """Descriptors with the principal components of the rows of the keys' self-similarity, at D instead of T numbers.

    With the tokens' unit keys as the rows of K (T, D), the self-similarity is K K'. Its rows have the same inner
    products as those of K (K' K)^(1/2), and so the same projections on their principal components: the T x T matrix,
    and its T x T covariance, are never made.

    Args:
        keys: (T, D) of each image, heads concatenated, prefix tokens included.
    """
    units = [F.normalize(k.double(), dim=-1) for k in keys]
    values, vectors = torch.linalg.eigh(sum((k.mT @ k for k in units), torch.zeros((), device=units[0].device)))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    return [(k @ root).float() for k in units]


def _features(
    backbone: ViTFeatures, image: Tensor, facets: Sequence[str], layers: Sequence[int], mask: bool
) -> Features:
    wanted = {facet: list(layers) for facet in facets if facet in FACETS}
    if "self_similarity" in facets:
        wanted["keys"] = list(layers)
    if mask:  # the deepest layer's tokens tell where the object is
        wanted["tokens"] = list(layers)
    return backbone(image, **wanted)


def _colors(features: Sequence[Features], facet: str, layer: int, kept: Sequence[Tensor] | None) -> list[Tensor]:
    """Maps (3, h, w) in [0, 1] on the patch grids of images that share a basis; black outside `kept`."""
    if facet == "self_similarity":
        keys = [rearrange(f.keys[layer], "1 heads t d -> t (heads d)") for f in features]
        patches = [f.grid[0] * f.grid[1] for f in features]
        descriptors = [d[-n:] for d, n in zip(self_similarity_descriptors(keys), patches, strict=True)]
    else:
        descriptors = [patch_descriptors(f, facet, layer)[0] for f in features]
    if kept is None:
        kept = [torch.ones(f.grid, dtype=torch.bool, device=descriptors[0].device) for f in features]
    shown = torch.cat([d[k.flatten()] for d, k in zip(descriptors, kept, strict=True)])
    basis = principal_components(shown)
    scores = basis.project(shown)
    low, high = scores.quantile(CLIPPED, 0), scores.quantile(1 - CLIPPED, 0)
    maps = []
    for d, k in zip(descriptors, kept, strict=True):
        colors = ((basis.project(d) - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        maps.append(rearrange(colors * k.view(-1, 1), "(h w) c -> c h w", h=len(k)))
    return maps
