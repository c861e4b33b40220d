"""What can be asked of the analysis tools. Needs no torch, so that a command refuses a wrong argument at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from splice_ff.errors import InputError
from splice_ff.vit.spec import FACETS, VIT_SIZE

PCA_FACETS = (*FACETS, "self_similarity")
Feature = Literal["cls", "keys", "self_similarity"]
Prior = Literal["cnn", "pixels"]


@dataclass(frozen=True)
class InversionRecipe:
    """How features are inverted.

    Published: the CNN prior, Adam at 0.01 throughout, 20 000 steps. For `cls`, every step adds fresh noise to the
    generator's fixed input (noise of standard deviation 1): 10 for the first 10 000 steps, 2 for the next 5 000, 0.5
    for the last 5 000. For `keys` the input stays as it is. Ours keeps these shares of however many steps there are,
    and lowers the learning rate along a cosine to a tenth, which lets a short run settle. Our generator is the
    per-pair one (five scales, 3x3 kernels); the published one has six scales and larger kernels.

    Raises:
        InputError: a value that cannot work.
    """

    feature: Feature = "keys"
    prior: Prior = "cnn"
    """cnn: a skip UNet paints the image from noise. pixels: they are optimized directly, for contrast."""
    steps: int = 300
    size: int = VIT_SIZE
    """Shorter side of the images, in pixels; also what the ViT sees."""
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        for name, value, known in (("feature", self.feature, Feature), ("prior", self.prior, Prior)):
            if value not in get_args(known):
                raise InputError(f"unknown {name} '{value}'. Known: {', '.join(get_args(known))}")
        for name, number in (("steps", self.steps), ("size", self.size)):
            if number < 1:
                raise InputError(f"{name} must be at least 1, not {number}")


def choose_facets(text: str | None) -> list[str]:
    """Facets that a text names with commas between, each once; all without a text.

    Raises:
        InputError: one is unknown.
    """
    if text is None:
        return list(PCA_FACETS)
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in PCA_FACETS:
            raise InputError(f"unknown facet '{name}'. Known: {', '.join(PCA_FACETS)}")
    return list(dict.fromkeys(names))


def parse_layers(text: str) -> list[int]:
    """Numbers of layers with commas between; negative ones count from the end.

    Raises:
        InputError: not numbers.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"layers '{text}': whole numbers with commas between, like 2,5,8,11") from error
