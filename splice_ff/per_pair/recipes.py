"""How a pair is optimized, as data."""

from __future__ import annotations

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
    similarities: int
    """So many random similarities a step (zoom, shift, rotation, flip, at random resolution) under which output and
    structure image are compared; 0: as they are. See `splice_ff.per_pair.augment.same_similarity`."""
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
    edge_weight: float = 0.0
    """Of edges that the structure image lacks, see `splice_ff.losses.edges`; 0 as published."""
    style_weight: float = 0.0
    """Of the distance of the output's patches from the look's, see `splice_ff.losses.style`; 0 as published. Like
    colors and edges, it counts in the views of a step, not in the additional whole image of `whole_every`."""
    color_weight: float = 0.0
    """Of the distance of the output's colors from the look's, see `splice_ff.losses.color`; 0 as published."""

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
        views=0, similarities=0, jitter_in_8_bits=True, whole_every=75, cls_warmup=1, identity_every=1,
        vit_input=PUBLISHED,
    ),
    "fast": Recipe(
        backbone="dino_vits8", steps=600, size=224, generator="published", precision="auto",
        learning_rate=4e-3, beta1=0.5, cosine=True, copy_steps=40, ema_decay=0.9, patience=8,
        views=16, similarities=1, jitter_in_8_bits=False, whole_every=0, cls_warmup=0, identity_every=2,
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
    structure_weight=5.0,
    edge_weight=4.0,
    style_weight=3.0,
    color_weight=0.02,
)
"""What refines a one-shot answer (`splice_ff.one_shot.refine`): the structure and appearance losses of `fast`, from a
generator that knows much already, so with smaller steps, few views and no averaging; losses of style and of colors, and
a penalty on edges that the structure image lacks.

Chosen by images, judges and edges of thirteen pairs at 224 px. Without colors, a structure weight of 3 with edges 2 and
style 2 had judges and edges 0.01 lower, and eyes that strayed more; 6, 6 and 4 differed by less than 0.01; at a rate of
1.6e-3 judges fell by 0.02. `color_weight` cost judges 0.01, gave edges 0.02 (on all 86 pairs neither shows), and cyan
and violet seams faded. At 160 px two random similarities a step took half as much time again and changed nothing that
judges see; of an earlier model, without any an eye strayed, and sixteen that were drawn again and again made rainbows
of two noses. What `style_weight` does on all 86 pairs: docs/experiments.md. The identity loss at every eighth step cost
a tenth of the time, and judges and edges stayed within 0.03 without it.
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
