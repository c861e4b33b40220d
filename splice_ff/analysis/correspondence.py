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
from splice_ff.errors import InputError
from splice_ff.utils.machine import plain_torch
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import VIT_SIZE

THRESHOLDS = {"vit_mini": (0.56, 0.09), "vit_s14_robust": (0.974, 0.2)}
"""By backbone: a match is weak where the [CLS] cosine and the share of patches with a best buddy are both below these.

Chosen for at most 5 % false alarms on half of 164 pairs that people matched and as many shuffled ones of other kinds
(`python -m eval.features match PAIRS --backbone NAME`). On the other halves, for two ways of shuffling, `vit_mini`
calls 2 and 5 % of the matched pairs weak, and 57 and 63 % of the shuffled ones; `vit_s14_robust` 2 and 4 % of the
matched, and 32 and 41 %. Many shuffled pairs pass, so a pair that does is called no more than possible.
"""
OTHERS = "vit_mini"
"""Whose thresholds are taken for backbones that were not measured."""


def thresholds_of(backbone: str) -> tuple[float, float]:
    """[CLS] cosine and share of best buddies, by a backbone's name."""
    return THRESHOLDS.get(backbone, THRESHOLDS[OTHERS])


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
    """How well the meanings of two images fit, as far as two numbers can tell."""

    cosine: float
    """Of the deepest [CLS] tokens, in [-1, 1]."""
    buddies: int
    """Patches with a best buddy in the other image."""
    is_weak: bool
    """Both numbers are low. If they are not, the match is possible, no more."""
    text: str
    """The verdict, one line for the user."""


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
    """Whether two images share enough meaning for a transfer; one ViT pass.

    Both are seen as squares, so that they share the pass and the number of patches does not depend on their shapes.

    Args:
        backbone: the frozen ViT.
        structure, appearance: (1, 3, H, W) in [0, 1].

    Raises:
        InputError: the ViT has no [CLS] token, or the images are something else.
    """
    if backbone.vit.cls_token is None:
        raise InputError(f"{backbone.name} has no [CLS] token to compare")
    squares = [
        prepare(backbone, image, name, square=True)
        for name, image in (("structure", structure), ("appearance", appearance))
    ]
    features = backbone(torch.cat(squares), cls=True, keys=[-1])
    assert features.cls is not None
    cosine = F.cosine_similarity(features.cls[0, -1].float(), features.cls[1, -1].float(), dim=0).item()
    keys = patch_descriptors(features, "keys", backbone.depth - 1)
    buddies = len(best_buddies(keys[0], keys[1], (features.grid, features.grid)).similarity)
    least_cosine, least_share = thresholds_of(backbone.name)
    is_weak = cosine < least_cosine and buddies < least_share * keys.shape[1]
    numbers = f"[CLS] cosine {cosine:.2f}, {buddies} of {keys.shape[1]} patches have a best buddy"
    if backbone.name not in THRESHOLDS:
        numbers += f"; thresholds measured with {' and '.join(THRESHOLDS)} only"
    verdict = f"weak ({numbers}); colors may land anywhere" if is_weak else f"possible ({numbers})"
    return MatchStrength(cosine, buddies, is_weak, f"semantic match: {verdict}")
