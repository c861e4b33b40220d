"""Networks to time, with random weights where real ones would have to be downloaded: speed does not depend on them."""

from __future__ import annotations

import timm
import torch

from splice_ff.errors import InputError
from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import BACKBONES, VIT_SIZE
from splice_ff.vit.weights import load_backbone


def make_backbone(name: str) -> ViTFeatures:
    """A known ViT with random weights, or a bundled one or a folder with its own.

    Raises:
        InputError: neither known nor a folder.
    """
    if name not in BACKBONES:
        return load_backbone(name)
    return ViTFeatures(timm.create_model(BACKBONES[name].timm_name, num_classes=0), spec=BACKBONES[name])


def make_one_shot(backbone: str, size: str, checkpoint: str | None = None) -> SpliceFF:
    """A one-shot model: a checkpoint, or a generator of a size with random weights on a backbone.

    Raises:
        InputError: no such checkpoint, backbone or size.
    """
    if checkpoint:
        return SpliceFF.from_pretrained(checkpoint).requires_grad_(False)
    vit = make_backbone(backbone)
    torch.manual_seed(0)
    generator = AmortizedGenerator(GeneratorConfig(vit.depth, vit.width, SIZES[size]))
    return SpliceFF(generator, vit, vit_size=VIT_SIZE, size=256).eval().requires_grad_(False)


def check_plain(backbone: ViTFeatures) -> None:
    """Whether the naive step can use it.

    Raises:
        InputError: not a timm VisionTransformer.
    """
    if not isinstance(backbone.vit, timm.models.VisionTransformer):
        raise InputError(
            f"{backbone.name}: the naive step is written for plain ViTs, not {type(backbone.vit).__name__}"
        )
