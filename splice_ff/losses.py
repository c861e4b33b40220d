"""The three losses of Splice, measured in the feature space of a frozen ViT (arXiv:2201.00424, section 3.3).

    L = L_structure + 10 L_appearance + L_identity

of a structure image Is, an appearance image It and an output Io = G(Is). The paper writes norms, and
L_app + 0.1 L_structure + 0.1 L_id; the authors' code takes means of squares, and so do we.
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
    """The layout: L_structure = || S(Is) - S(Io) ||^2, S being the self-similarity of the deepest keys.

    Args:
        output_keys, structure_keys: (B, heads, T, d).

    Returns:
        The mean over batch and pairs of tokens, a scalar in [0, 4].
    """
    return F.mse_loss(self_similarity(output_keys), self_similarity(structure_keys))


def appearance_loss(output_cls: Tensor, appearance_cls: Tensor) -> Tensor:
    """The look: L_appearance = || t(It) - t(Io) ||^2, t being the deepest [CLS] token.

    Args:
        output_cls, appearance_cls: (B, D).

    Returns:
        The mean over batch and D, a scalar.
    """
    return F.mse_loss(output_cls.float(), appearance_cls.float())


def identity_loss(identity_keys: Tensor, appearance_keys: Tensor) -> Tensor:
    """The generator leaves the appearance image as it is: L_identity = || K(It) - K(G(It)) ||^2, K the deepest keys.

    Args:
        identity_keys, appearance_keys: (B, heads, T, d).

    Returns:
        The mean over batch, heads, tokens and d, a scalar.
    """
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
    """The weighted sum of the three losses, in the features of one backbone.

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
        painted, *repainted = self._features([output] if identity is None else [output, identity])
        kept = output.new_zeros(())
        if repainted:
            kept = identity_loss(repainted[0].keys, (identity_target or appearance).keys)
        return self.weigh(
            structure_loss(painted.keys, structure.keys), appearance_loss(painted.cls, appearance.cls), kept
        )

    def identity(self, images: Tensor, target: Target) -> Tensor:
        """The identity loss alone, of images (B, 3, H, W) and the target they should have."""
        return identity_loss(self._features([images])[0].keys, target.keys)

    def weigh(self, structure: Tensor, appearance: Tensor, identity: Tensor) -> Losses:
        """The three terms with their weighted sum."""
        w = self.weights
        total = w.structure * structure + w.appearance * appearance + w.identity * identity
        return Losses(structure, appearance, identity, total)

    def _features(self, batches: Sequence[Tensor]) -> list[Target]:
        """Deepest keys and [CLS] tokens of several batches; those of one size share a pass."""
        inputs = [self.vit_input.resize(images, self.backbone.patch_size) for images in batches]
        encoded: dict[int, Target] = {}
        for shape in dict.fromkeys(x.shape[-2:] for x in inputs):
            group = [i for i, x in enumerate(inputs) if x.shape[-2:] == shape]
            features = self.backbone(torch.cat([inputs[i] for i in group]), cls=True, keys=[-1])
            assert features.cls is not None
            sizes = [len(inputs[i]) for i in group]
            keys = features.keys[self.backbone.depth - 1].split(sizes)
            cls = features.cls[:, -1].split(sizes)
            encoded |= {i: Target(k, c) for i, k, c in zip(group, keys, cls, strict=True)}
        return [encoded[i] for i in range(len(inputs))]
