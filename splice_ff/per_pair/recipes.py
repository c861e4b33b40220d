"""How a pair is optimized, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from splice_ff.errors import InputError
from splice_ff.networks.skip_unet import VARIANTS
from splice_ff.vit.inputs import PUBLISHED, ViTInput

Precision = Literal["auto", "fp32", "bf16"]
MIN_SIZE = 64
"""Pixels: crops of 95 % stay well above what the generator needs."""


@dataclass(frozen=True)
class Recipe:
    """A recipe for per-pair optimization.

    Raises:
        InputError: a value that cannot work.
    """

    backbone: str
    steps: int
    size: int | None
    """Shorter side in pixels that both images are resized to; None keeps their own."""
    learning_rate: float
    beta1: float
    """Adam's; beta2 is 0.99."""
    cosine: bool
    """Lower the learning rate to 0 along a cosine, or keep it."""
    copy_steps: int
    """Steps before the first in which the generator learns to copy both images, by pixels alone (no ViT)."""
    views: int
    """0: new augmented views of both images at every step, as published. Otherwise so many views of the appearance
    image are drawn and encoded once, and the structure image is always seen whole, as it will be judged."""
    jitter_in_8_bits: bool
    """Whether color jitter and blur round to 8 bits after each change, as they do on image files; see `augment`."""
    whole_every: int
    """Every such step the whole structure image is used as well, with weights of its own; 0: never."""
    cls_warmup: int
    """So many steps at first minimize the appearance loss alone (and that of the whole image, where they use it)."""
    identity_every: int
    """The identity loss is taken at every such step, weighted as much more; it costs half of a step."""
    average: float
    """Decay of the moving average of the weights that makes the image; 0: the weights themselves."""
    patience: int
    """Stop after so many evaluations in which the best total fell by less than 1 %; 0: never."""
    precision: Precision
    generator: str
    vit_input: ViTInput = field(default_factory=ViTInput)
    """How images become what the losses see."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, not {self.steps}")
        if self.size is not None and self.size < MIN_SIZE:
            raise InputError(f"size must be at least {MIN_SIZE} pixels, not {self.size}")
        if self.precision not in get_args(Precision):
            raise InputError(f"unknown precision '{self.precision}'. Known: {', '.join(get_args(Precision))}")
        if self.generator not in VARIANTS:
            raise InputError(f"unknown generator '{self.generator}'. Known: {', '.join(VARIANTS)}")


PRESETS = {
    "paper": Recipe(
        backbone="dino_vitb8", steps=10_000, size=None, generator="published", precision="fp32",
        learning_rate=2e-3, beta1=0.0, cosine=False, copy_steps=0, average=0.0, patience=0,
        views=0, jitter_in_8_bits=True, whole_every=75, cls_warmup=1, identity_every=1,
        vit_input=PUBLISHED,
    ),
    "fast": Recipe(
        backbone="dino_vits8", steps=600, size=224, generator="published", precision="auto",
        learning_rate=4e-3, beta1=0.5, cosine=True, copy_steps=40, average=0.9, patience=8,
        views=16, jitter_in_8_bits=False, whole_every=0, cls_warmup=0, identity_every=2,
    ),
}  # fmt: skip
"""`paper` follows the published code. `fast` minimizes the same losses; its values are chosen by measurement."""
