"""The three losses of Splice, measured in the feature space of a frozen ViT (paper, section 3.3).

All are means of squares, as in the published code (the paper writes norms).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.vit.features import ViTFeatures, self_similarity
from splice_ff.vit.inputs import ViTInput
from splice_ff.vit.spec import LossWeights


def structure_loss(output_keys: Tensor, structure_keys: Tensor) -> Tensor:
    """Mean squared difference of the keys' self-similarities; keys (B, heads, T, d), result a scalar."""
    return F.mse_loss(self_similarity(output_keys), self_similarity(structure_keys))


def appearance_loss(output_cls: Tensor, appearance_cls: Tensor) -> Tensor:
    """Mean squared difference of deepest [CLS] tokens (B, D)."""
    return F.mse_loss(output_cls.float(), appearance_cls.float())


def identity_loss(identity_keys: Tensor, appearance_keys: Tensor) -> Tensor:
    """Mean squared difference of keys (B, heads, T, d): the generator should leave the appearance image as it is."""
    return F.mse_loss(identity_keys.float(), appearance_keys.float())


@dataclass(frozen=True)
class Losses:
    """The three losses as scalar tensors, and their weighted sum. `identity` is 0 where none was asked for."""

    structure: Tensor
    appearance: Tensor
    identity: Tensor
    total: Tensor

    def floats(self) -> dict[str, float]:
        """Plain numbers, for logs."""
        return {name: getattr(self, name).item() for name in ("total", "structure", "appearance", "identity")}


@dataclass(frozen=True)
class Target:
    """What the losses compare with, for a batch of images: constants, without gradient."""

    keys: Tensor
    """Deepest layer, (B, heads, T, d)."""
    cls: Tensor
    """Deepest layer, (B, D)."""


class SpliceLoss:
    """Structure + 10 x appearance + identity, in the features of one backbone.

    Args:
        backbone: the frozen ViT. Its `spec.loss_scales` multiply the weights, so that backbones with features of
            another scale than DINO's keep the published balance.
        weights: of the three terms.
        vit_input: how images become what the ViT sees; `PUBLISHED` follows the authors' code.
    """

    def __init__(
        self, backbone: ViTFeatures, weights: LossWeights | None = None, vit_input: ViTInput | None = None
    ) -> None:
        self.backbone, self.vit_input = backbone, vit_input or ViTInput()
        weights = weights or LossWeights()
        scales = backbone.spec.loss_scales if backbone.spec else LossWeights(1.0, 1.0, 1.0)
        self.weights = LossWeights(
            weights.structure * scales.structure,
            weights.appearance * scales.appearance,
            weights.identity * scales.identity,
        )

    @torch.no_grad()
    def targets(self, *batches: Tensor) -> list[Target]:
        """Features of structure or appearance images, each (B, 3, H, W) in [0, 1], to compare with."""
        return self._features(batches)

    def __call__(
        self,
        output: Tensor,
        structure: Target,
        appearance: Target,
        identity: Tensor | None = None,
        identity_target: Target | None = None,
    ) -> Losses:
        """Losses of a batch.

        Args:
            output: generated images (B, 3, H, W) in [0, 1].
            structure: target of the structure images, of the same size and batch as `output`.
            appearance: target of the appearance images, same batch, any size.
            identity: the generator applied to the appearance images, (B', 3, H', W'); omitted, the term is 0.
            identity_target: target of those images, if not `appearance`.
        """
        made = self._features([output] if identity is None else [output, identity])
        structural = structure_loss(made[0].keys, structure.keys)
        visual = appearance_loss(made[0].cls, appearance.cls)
        same = output.new_zeros(())
        if identity is not None:
            same = identity_loss(made[1].keys, (identity_target or appearance).keys)
        return self.weigh(structural, visual, same)

    def weigh(self, structure: Tensor, appearance: Tensor, identity: Tensor) -> Losses:
        """The three terms with their weighted sum."""
        w = self.weights
        total = w.structure * structure + w.appearance * appearance + w.identity * identity
        return Losses(structure, appearance, identity, total)

    def _features(self, batches: Sequence[Tensor]) -> list[Target]:
        """Deepest keys and [CLS] of several batches; those that the ViT sees at one size share a pass."""
        inputs = [self.vit_input.resize(images, self.backbone.patch_size) for images in batches]
        made: dict[int, Target] = {}
        for shape in dict.fromkeys(x.shape[-2:] for x in inputs):
            group = [i for i, x in enumerate(inputs) if x.shape[-2:] == shape]
            features = self.backbone(torch.cat([inputs[i] for i in group]), cls=True, keys=[-1])
            assert features.cls is not None
            sizes = [len(inputs[i]) for i in group]
            keys = features.keys[self.backbone.depth - 1].split(sizes)
            cls = features.cls[:, -1].split(sizes)
            made |= {i: Target(k, c) for i, k, c in zip(group, keys, cls, strict=True)}
        return [made[i] for i in range(len(inputs))]
