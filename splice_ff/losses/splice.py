"""The three losses of Splice, measured in the feature space of a frozen ViT (arXiv:2201.00424, section 3.3).

    L = L_structure + 10 L_appearance + L_identity

of a structure image Is, an appearance image It and an output Io = G(Is). The paper writes norms, and
L_app + 0.1 L_structure + 0.1 L_id; the authors' code takes means of squares, and so do we.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.losses.style import token_statistics
from splice_ff.vit.features import Features, ViTFeatures, self_similarity
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

    @classmethod
    def weighed(cls, weights: LossWeights, structure: Tensor, appearance: Tensor, identity: Tensor) -> Losses:
        """The three losses with their sum."""
        total = weights.structure * structure + weights.appearance * appearance + weights.identity * identity
        return cls(structure, appearance, identity, total)

    def floats(self) -> dict[str, float]:
        """Plain numbers, for logs."""
        return {name: getattr(self, name).item() for name in ("total", "structure", "appearance", "identity")}


@dataclass(frozen=True)
class Target:
    """The features of a batch of images that losses compare."""

    keys: Tensor
    """Deepest layer, (B, heads, T, d)."""
    cls: Tensor
    """Deepest layer, (B, D)."""
    statistics: Tensor | None = None
    """Of the patches' tokens, (B, blocks, 2, D), where the style loss is wanted."""

    @classmethod
    def from_features(cls, features: Features, prefix_tokens: int, layers: Sequence[int]) -> Target:
        """From features with `cls`, the deepest keys and the tokens of `layers`: of none without the style loss."""
        assert features.cls is not None
        tokens = {layer: features.tokens[layer] for layer in layers}
        statistics = token_statistics(tokens, prefix_tokens) if tokens else None
        return cls(features.keys[max(features.keys)], features.cls[:, -1], statistics)

    def roll(self, count: int) -> Target:
        """As `torch.roll` along the batch: image i moves to (i + count) mod B."""
        statistics = None if self.statistics is None else self.statistics.roll(count, 0)
        return Target(self.keys.roll(count, 0), self.cls.roll(count, 0), statistics)

    def split(self, sizes: Sequence[int]) -> list[Target]:
        """Several, of so many images each."""
        statistics = [None] * len(sizes) if self.statistics is None else self.statistics.split(sizes)
        return [Target(*parts) for parts in zip(self.keys.split(sizes), self.cls.split(sizes), statistics, strict=True)]


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
        self.weights = scaled_weights(backbone, weights or LossWeights())

    @torch.no_grad()
    def targets(self, *batches: Tensor) -> list[Target]:
        """Features of structure or appearance images, each (B, 3, H, W) in [0, 1], to compare with: constants."""
        return encode(self.backbone, self.vit_input, batches)

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
        seen = encode(self.backbone, self.vit_input, [output] if identity is None else [output, identity])
        return compare(self.weights, seen, structure, appearance, identity_target)


def scaled_weights(backbone: ViTFeatures, weights: LossWeights) -> LossWeights:
    """Weights times the scales of a backbone's features."""
    scales = backbone.spec.loss_scales if backbone.spec else LossWeights(1.0, 1.0, 1.0)
    return LossWeights(*(getattr(weights, f.name) * getattr(scales, f.name) for f in fields(LossWeights)))


def encode(
    backbone: ViTFeatures, vit_input: ViTInput, batches: Sequence[Tensor], style_layers: Sequence[int] = ()
) -> list[Target]:
    """What the losses see of several batches, each (B, 3, H, W) in [0, 1]; those of one size share a pass of the ViT.

    `style_layers` are those of `splice_ff.losses.style.style_layers`, where the style loss is wanted.
    """
    inputs = [vit_input.resize(images, backbone.patch_size) for images in batches]
    encoded: dict[int, Target] = {}
    for shape in dict.fromkeys(x.shape[-2:] for x in inputs):
        group = [i for i, x in enumerate(inputs) if x.shape[-2:] == shape]
        features = backbone(torch.cat([inputs[i] for i in group]), cls=True, keys=[-1], tokens=style_layers)
        together = Target.from_features(features, backbone.prefix_tokens, style_layers)
        encoded |= dict(zip(group, together.split([len(inputs[i]) for i in group]), strict=True))
    return [encoded[i] for i in range(len(inputs))]


def compare(
    weights: LossWeights,
    seen: Sequence[Target],
    structure: Target,
    appearance: Target,
    identity_target: Target | None = None,
) -> Losses:
    """The three losses from features.

    Args:
        weights: of the sum.
        seen: features of the output, and, where the identity loss is taken, of the generator's image of the appearance.
        structure, appearance: what they are compared with.
        identity_target: what the second is compared with, if not `appearance`.
    """
    output, *repainted = seen
    kept = output.cls.new_zeros((), dtype=torch.float32)
    if repainted:
        kept = identity_loss(repainted[0].keys, (identity_target or appearance).keys)
    return Losses.weighed(
        weights, structure_loss(output.keys, structure.keys), appearance_loss(output.cls, appearance.cls), kept
    )
