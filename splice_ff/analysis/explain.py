"""Why a result looks as it does: where its structure differs, how near its appearance came, what was matched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.analysis.correspondence import Matches, MatchStrength, match, match_strength
from splice_ff.analysis.patches import prepare
from splice_ff.errors import InputError
from splice_ff.utils.machine import plain_torch
from splice_ff.vit.features import ViTFeatures


@dataclass(frozen=True)
class Explanation:
    """What `explain` measures."""

    structure_map: Tensor
    """(h, w) on the patch grid: mean squared difference of each patch's row of the self-similarity."""
    structure_loss: float
    """The mean over all rows, that of the prefix tokens included: the structure loss."""
    cls_distance: Tensor
    """(L,) 1 - cosine between the [CLS] tokens of output and appearance, layer by layer."""
    cls_distance_before: Tensor
    """(L,) the same between structure and appearance: how far there was to go."""
    matches: Matches
    """Best buddies of structure and appearance."""
    strength: MatchStrength


@plain_torch(gradients=False)
def explain(backbone: ViTFeatures, structure: Tensor, appearance: Tensor, output: Tensor) -> Explanation:
    """Explain a transfer with the features that its losses compare (paper, section 3.3).

    Args:
        backbone: the frozen ViT; the one that made the output tells most.
        structure, appearance, output: (1, 3, H, W) in [0, 1], `output` in the proportions of `structure`.

    Raises:
        InputError: `output` has other proportions than `structure`, or the ViT has no [CLS] token.
    """
    strength = match_strength(backbone, structure, appearance)
    before, after, target = (
        prepare(backbone, image, name)
        for name, image in (("structure", structure), ("output", output), ("appearance", appearance))
    )
    if before.shape != after.shape:
        sizes = [f"{i.shape[-1]}x{i.shape[-2]}" for i in (output, structure)]
        raise InputError(f"an output of {sizes[0]} pixels does not have the proportions of its structure ({sizes[1]})")
    pair = backbone(torch.cat([before, after]), cls=True, keys=[-1])
    goal = backbone(target, cls=True)
    assert pair.cls is not None and goal.cls is not None
    similarity_before, similarity_after = pair.self_similarity()
    rows = (similarity_after - similarity_before).square().mean(-1)
    distances = 1 - F.cosine_similarity(pair.cls.float(), goal.cls.float(), dim=-1)
    height, width = pair.grid
    return Explanation(
        rows[-height * width :].view(height, width).cpu(),
        rows.mean().item(),
        distances[1].cpu(),
        distances[0].cpu(),
        match(backbone, structure, appearance),
        strength,
    )
