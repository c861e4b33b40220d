"""The published augmentations, on tensors, drawn from a `torch.Generator` so that runs repeat.

Structure: flip, color jitter, blur, crop. Appearance: flip, crop. Crops are squares of 95-100 % of the height.

And one that is not published: `same_similarity`, at a `random_resolution`, under which `fast` compares output and
structure image, and training does where a config says so.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Generator, Tensor, cat, rand, randint, randperm, tensor, uint8
from torchvision.transforms.v2 import functional as TF

from splice_ff.vit.inputs import ViTInput

MIN_COVER = 0.95
FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.5
BLUR_PROBABILITY = 0.2
LEAST_ZOOM = 0.85
"""Share of the sides that `same_similarity` shows at least."""
MOST_DEGREES = 6
LEAST_RESOLUTION = 0.6
"""Share of the ViT's usual size at which a view is seen at least."""


def structure_views(images: Tensor, generator: Generator, in_8_bits: bool = False) -> Tensor:
    """Flip, jitter, blur and crop each of (B, 3, H, W) in [0, 1]; crops share a size: (B, 3, s, s).

    `in_8_bits` jitters and blurs images of 8 bits a channel with Pillow, as the published code does, which rounds after
    every change.
    """
    views = [_recolor(_flip(image, generator), generator, in_8_bits) for image in images.split(1)]
    return _square_crops(cat(views), generator)


def appearance_views(images: Tensor, generator: Generator) -> Tensor:
    """Flip and crop each of (B, 3, H, W): its colors and texture are the target. (B, 3, s, s)."""
    return _square_crops(cat([_flip(image, generator) for image in images.split(1)]), generator)


def same_similarity(batches: list[Tensor], generator: Generator, least_zoom: float = LEAST_ZOOM) -> list[Tensor]:
    """One random flip, rotation, zoom and shift of all the batches, each (B, 3, H, W), of one size; that size is kept.

    A pattern that is locked to the ViT's patch grid matches one view and fails in the next (expectation over
    transformation: Athalye et al., arXiv 1707.07397). Where a rotated view reaches beyond the image, it is mirrored.
    """
    height, width = batches[0].shape[-2:]
    zoom = _uniform(least_zoom, 1, generator)
    angle = math.radians(_uniform(-MOST_DEGREES, MOST_DEGREES, generator))
    across = -1 if _happens(FLIP_PROBABILITY, generator) else 1
    cos, sin, aspect = zoom * math.cos(angle), zoom * math.sin(angle), width / height
    shifts = [_uniform(zoom - 1, 1 - zoom, generator) for _ in range(2)]
    # Coordinates run from -1 to 1 along either side: the rotation needs the aspect to keep right angles.
    theta = tensor([[across * cos, -sin / aspect, shifts[0]], [across * sin * aspect, cos, shifts[1]]])
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False).to(batches[0].device)
    return [
        F.grid_sample(
            images.float(), grid.expand(len(images), -1, -1, -1), padding_mode="reflection", align_corners=False
        )
        for images in batches
    ]


def random_resolution(vit_input: ViTInput, generator: Generator) -> ViTInput:
    """The same at a random share of its size, `LEAST_RESOLUTION` at least."""
    return replace(vit_input, size=round(_uniform(LEAST_RESOLUTION, 1, generator) * vit_input.size))


def _square_crops(images: Tensor, generator: Generator) -> Tensor:
    h, w = images.shape[-2:]
    size = min(round(_uniform(MIN_COVER * h, h, generator)), w)
    crops = []
    for image in images.split(1):
        top, left = (int(randint(side - size + 1, (), generator=generator)) for side in (h, w))
        crops.append(image[..., top : top + size, left : left + size])
    return cat(crops)


def _flip(image: Tensor, generator: Generator) -> Tensor:
    return image.flip(-1) if _happens(FLIP_PROBABILITY, generator) else image


def _recolor(image: Tensor, generator: Generator, in_8_bits: bool) -> Tensor:
    if not in_8_bits:
        # the blur's weights sum to 1 only up to rounding
        return _blur(_jitter(image, generator), generator).clamp(0, 1)
    pil = TF.to_pil_image((image[0] * 255).round().to(uint8).cpu())
    return TF.pil_to_tensor(_blur(_jitter(pil, generator), generator))[None].to(image) / 255


def _jitter(image: Any, generator: Generator) -> Any:
    """Brightness and contrast by up to 40 %, saturation 20 %, hue 0.1 of the circle, in random order."""
    if not _happens(JITTER_PROBABILITY, generator):
        return image
    changes = (
        lambda x: TF.adjust_brightness(x, _uniform(0.6, 1.4, generator)),
        lambda x: TF.adjust_contrast(x, _uniform(0.6, 1.4, generator)),
        lambda x: TF.adjust_saturation(x, _uniform(0.8, 1.2, generator)),
        lambda x: TF.adjust_hue(x, _uniform(-0.1, 0.1, generator)),
    )
    for i in randperm(len(changes), generator=generator).tolist():
        image = changes[i](image)
    return image


def _blur(image: Any, generator: Generator) -> Any:
    if not _happens(BLUR_PROBABILITY, generator):
        return image
    return TF.gaussian_blur(image, [3, 3], [_uniform(0.1, 2.0, generator)])


def _happens(probability: float, generator: Generator) -> bool:
    return _uniform(0, 1, generator) < probability


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * rand((), generator=generator).item()
