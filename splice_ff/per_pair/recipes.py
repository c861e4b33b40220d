"""How a pair is optimized, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from splice_ff.errors import InputError
from splice_ff.images.formats import MAX_PIXELS
from splice_ff.vit.inputs import PUBLISHED, ViTInput

Precision = Literal["auto", "fp32", "bf16"]
Generator = Literal["published", "refined"]
"""A key of `splice_ff.networks.skip_unet.VARIANTS`; named here too, as this module does without torch."""
MIN_SIZE = 64
"""Pixels: crops of 95 % stay well above what the generator needs."""
MAX_STEPS = 1_000_000
"""Fifty times what anybody has published: more is a slip of the finger."""


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
    similarity: bool
    """Whether a step compares output and structure image under a random similarity (zoom, shift, rotation, flip, at
    random resolution), or as they are. See `splice_ff.per_pair.augment.same_similarity`."""
    jitter_in_8_bits: bool
    """Whether color jitter and blur round to 8 bits after each change, as they do on image files; see `augment`."""
    whole_every: int
    """Every such step the whole structure image is used as well, with weights of its own; 0: never."""
    cls_warmup: int
    """So many steps at first minimize the appearance loss alone (and that of the whole image, where they use it)."""
    identity_every: int
    """The identity loss is taken at every such step, weighted as much more; it costs half of a step. 0: never."""
    ema_decay: float
    """Of the moving average of the weights, which makes the image; 0: the weights themselves make it."""
    patience: int
    """Stop after so many evaluations in which the best total fell by less than 1 %; 0: never."""
    precision: Precision
    generator: Generator
    vit_input: ViTInput = field(default_factory=ViTInput)
    """How images become what the losses see."""
    structure_weight: float = 1.0
    """Of the structure loss: 1 as published. At 0.7 `fast` comes nearer to the look and keeps as many edges: see
    docs/results.md."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Weights of terms that Splice does not have, by name (`splice_ff.losses.terms`); none as published. They count in
    the views of a step, not in the additional whole image of `whole_every`."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"steps must be from 1 to {MAX_STEPS}, not {self.steps}")
        if self.size is not None and self.size < MIN_SIZE:
            raise InputError(f"size must be at least {MIN_SIZE} pixels, not {self.size}")
        for name, value, known in (
            ("precision", self.precision, get_args(Precision)),
            ("generator", self.generator, get_args(Generator)),
        ):
            if value not in known:
                raise InputError(f"unknown {name} '{value}'. Known: {', '.join(known)}")


PRESETS = {
    "paper": Recipe(
        backbone="dino_vitb8", steps=10_000, size=None, generator="published", precision="fp32",
        learning_rate=2e-3, beta1=0.0, cosine=False, copy_steps=0, ema_decay=0.0, patience=0,
        views=0, similarity=False, jitter_in_8_bits=True, whole_every=75, cls_warmup=1, identity_every=1,
        vit_input=PUBLISHED,
    ),
    "fast": Recipe(
        backbone="dino_vits8", steps=600, size=224, generator="published", precision="auto",
        learning_rate=4e-3, beta1=0.5, cosine=True, copy_steps=40, ema_decay=0.9, patience=8,
        views=16, similarity=True, jitter_in_8_bits=False, whole_every=0, cls_warmup=0, identity_every=2,
        structure_weight=0.7,
    ),
}  # fmt: skip
"""`paper` follows the published code. `fast` minimizes the same losses, with less weight on the structure; its values
are chosen by measurement."""


REFINE = replace(
    PRESETS["fast"],
    steps=100,
    learning_rate=1e-3,
    copy_steps=0,
    views=4,
    identity_every=0,
    ema_decay=0.0,
    patience=0,
    structure_weight=2.5,
    terms={"style": 4.0, "color": 0.02, "edges": 2.0, "polarity": 8.0},
)
"""What refines a one-shot answer (`splice_ff.one_shot.refine`): the structure and appearance losses of `fast`, from a
generator that knows much already, so with smaller steps, few views and no averaging; and terms that Splice lacks.
docs/experiments.md says what each does.
"""


def make_recipe(preset: str, **changes: Any) -> Recipe:
    """A preset with some values replaced; None keeps the preset's.

    Raises:
        InputError: unknown preset, or a value that cannot work.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset '{preset}'. Known: {', '.join(PRESETS)}")
    return changed(PRESETS[preset], **changes)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with some values replaced; None keeps the recipe's.

    Raises:
        InputError: a value that cannot work.
    """
    return replace(recipe, **{k: v for k, v in changes.items() if v is not None})


def check_image_size(height: int, width: int, size: int | None, name: str) -> None:
    """Whether an image of height x width pixels can be worked on at a shorter side of `size`, or its own if None.

    Raises:
        InputError: too few pixels for the generator, or more than can be held; the message names the image.
    """
    short, long = min(height, width), max(height, width)
    if size is None and short < MIN_SIZE:
        raise InputError(f"{name}: {width}x{height} pixels are too few (at least {MIN_SIZE} a side); give a size")
    if size is not None and size < MIN_SIZE:
        raise InputError(f"size must be at least {MIN_SIZE} pixels, not {size}")
    if size is not None and size**2 * long / short > MAX_PIXELS:
        raise InputError(
            f"{name}: {width}x{height} pixels at a size of {size} are more than {MAX_PIXELS // 1_000_000} megapixels; "
            "give a smaller size"
        )
