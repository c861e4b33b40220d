"""Which parts of two images the backbone takes for the same: best buddies, and whether there are enough of them.

Best buddies are mutual nearest neighbors (Dekel et al., "Best-Buddies Similarity", 2015), here among deep ViT keys
(Amir et al., arXiv:2112.05814).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.analysis.patches import patch_descriptors, prepare
from splice_ff.utils.machine import plain_torch
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import VIT_SIZE

THRESHOLDS = {"vit_s14_robust": 0.69}
"""By backbone: images whose mean patch tokens are less alike share few parts. From `python -m eval.features match PAIRS
--backbone NAME`; docs/features.md has what they catch. Other backbones were not measured, and warn of nothing."""
WEAK = "these two share few parts: colors may land anywhere"


@dataclass(frozen=True)
class Matches:
    """Pairs of patches that are each other's nearest neighbor, most similar first."""

    patches: Tensor
    """(N, 2, 2) integers: match, image (0 is a, 1 is b), (row, column) on that image's patch grid."""
    similarity: Tensor
    """(N,) cosine similarity of the keys."""
    grids: tuple[tuple[int, int], tuple[int, int]]
    """Patches down and across in a and in b."""

    def pixels(self, sizes: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
        """Centers of the patches in images of these sizes (H, W): (N, 2, 2) floats, (y, x)."""
        return (self.patches + 0.5) * torch.tensor(sizes) / torch.tensor(self.grids)


@dataclass(frozen=True)
class MatchStrength:
    """How much of what they show two images share, as far as one number can tell."""

    similarity: float
    """Cosine of the means of their deepest patch tokens, in [-1, 1]."""
    is_weak: bool
    """Whether it is below the backbone's threshold; False where none was measured."""

    @property
    def text(self) -> str:
        """One line for the user."""
        return WEAK if self.is_weak else f"these two share parts (similarity {self.similarity:.2f})"


def best_buddies(a: Tensor, b: Tensor, grids: tuple[tuple[int, int], tuple[int, int]]) -> Matches:
    """Mutual nearest neighbors in cosine similarity.

    Args:
        a, b: descriptors of the patches of two images, (h * w, D) each, row by row.
        grids: (h, w) of both.
    """
    similarity = F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).mT
    nearest_in_b, nearest_in_a = similarity.argmax(1), similarity.argmax(0)
    in_a = torch.arange(len(a), device=a.device)
    in_a = in_a[nearest_in_a[nearest_in_b] == in_a]
    in_b = nearest_in_b[in_a]
    values, order = similarity[in_a, in_b].sort(descending=True, stable=True)
    sides = [
        torch.stack([patches[order] // width, patches[order] % width], -1)
        for patches, (_, width) in zip((in_a, in_b), grids, strict=True)
    ]
    return Matches(torch.stack(sides, 1).cpu(), values.cpu(), grids)


@plain_torch(gradients=False)
def match(backbone: ViTFeatures, a: Tensor, b: Tensor, layer: int = -1, size: int = VIT_SIZE) -> Matches:
    """Best buddies among the keys of two images (1, 3, H, W) in [0, 1], of any sizes.

    Args:
        backbone: the frozen ViT.
        a, b: the images.
        layer: whose keys; the deepest by default.
        size: shorter side, in pixels, of what the ViT sees.

    Raises:
        ImageError: something else than such images.
        IndexError: a layer that the ViT does not have.
    """
    inputs = [prepare(backbone, image, name, size) for name, image in (("a", a), ("b", b))]
    of_a, of_b = (backbone(x, keys=[layer]) for x in inputs)
    keys_a, keys_b = (patch_descriptors(features, "keys", max(features.keys))[0] for features in (of_a, of_b))
    return best_buddies(keys_a, keys_b, (of_a.grid, of_b.grid))


@plain_torch(gradients=False)
def match_strength(backbone: ViTFeatures, structure: Tensor, appearance: Tensor) -> MatchStrength:
    """Whether two images share enough for a transfer; one ViT pass, for which both are seen as squares.

    Args:
        backbone: the frozen ViT.
        structure, appearance: (1, 3, H, W) in [0, 1].

    Raises:
        ImageError: something else than such images.
    """
    squares = [
        prepare(backbone, image, name, square=True)
        for name, image in (("structure", structure), ("appearance", appearance))
    ]
    tokens = backbone(torch.cat(squares), tokens=[-1]).tokens[backbone.depth - 1]
    first, second = tokens[:, backbone.prefix_tokens :].float().mean(1)
    similarity = F.cosine_similarity(first, second, dim=0).item()
    return MatchStrength(similarity, similarity < THRESHOLDS.get(backbone.name, -1.0))
