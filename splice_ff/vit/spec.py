"""Backbones and loss weights as data; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

VIT_SIZE = 224
"""Shorter side, in pixels, of what the ViT sees, as published."""
FACETS = ("keys", "queries", "values", "tokens")
"""What can be asked for of a layer: the projections of its input, and its output."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three losses in their sum; the published ones by default."""

    structure: float = 1.0
    appearance: float = 10.0
    identity: float = 1.0


@dataclass(frozen=True)
class PositionInterpolation:
    """How a family's own code brings learned position embeddings to another grid; bicubic in any case.

    The default is DINO's and DINOv2's.
    """

    offset: float = 0.1
    """Added to both sides of the grid before they are divided by the native ones. This changes the scale, and so the
    places that are sampled, by a little. With 0 the grid's sides are the target, and the scale is exact."""
    antialias: bool = False


DINOV2_REGISTERS = PositionInterpolation(offset=0.0, antialias=True)
"""Of DINOv2 with registers (arXiv:2309.16588)."""


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone, as data."""

    name: str
    timm_name: str | None = None
    """In timm's registry; None if the architecture is in a checkpoint folder's config.json."""
    loss_scales: LossWeights = field(default_factory=lambda: LossWeights(1.0, 1.0, 1.0))
    """Factors on the loss weights, for backbones whose features have another scale than DINO's."""
    teachers: tuple[str, ...] = ()
    """Networks that it was distilled from, as far as recorded: they cannot judge images that were made with it."""
    positions: PositionInterpolation = field(default_factory=PositionInterpolation)

    @classmethod
    def of(cls, name: str, timm_name: str | None = None) -> BackboneSpec:
        """The spec of a timm model, with what its family needs; it is called by its timm name unless given another."""
        timm_name = timm_name or name
        positions = DINOV2_REGISTERS if "_reg4_dinov2" in timm_name else PositionInterpolation()
        return cls(name, timm_name, positions=positions)


BACKBONES = {
    name: BackboneSpec.of(name, timm_name)
    for name, timm_name in {
        # the paper's
        "dino_vits16": "vit_small_patch16_224.dino",
        "dino_vits8": "vit_small_patch8_224.dino",
        "dino_vitb16": "vit_base_patch16_224.dino",
        "dino_vitb8": "vit_base_patch8_224.dino",
        # others, for comparison; no loss weights have been tuned for them
        "dinov2_vits14": "vit_small_patch14_dinov2.lvd142m",
        "dinov2_vitb14": "vit_base_patch14_dinov2.lvd142m",
        "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
        "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
        "dinov3_vits16": "vit_small_patch16_dinov3.lvd1689m",
        "dinov3_vitb16": "vit_base_patch16_dinov3.lvd1689m",
        "clip_vitb16": "vit_base_patch16_clip_quickgelu_224.openai",  # OpenAI trained with QuickGELU
    }.items()
}
BUNDLED = "vit_s14_robust"
"""The bundled backbone that takes DINO's place where its weights cannot be had. Not DINO; see its model card."""
