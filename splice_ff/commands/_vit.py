"""What the commands that show a ViT's features share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import splice_ff
from splice_ff.errors import InputError

if TYPE_CHECKING:
    from splice_ff.vit.features import ViTFeatures

ViTSize = Annotated[
    int,
    typer.Option(min=33, max=2048, help="Shorter side, in pixels, of what the ViT sees."),
]
Layer = Annotated[int, typer.Option(help="Layer of the ViT, from 0; -1 is the deepest.")]


def parse_layers(text: str, vit: ViTFeatures) -> list[int]:
    """Layers from 0, in order, of numbers with commas between; negative ones count from the end.

    Raises:
        InputError: not numbers, or a layer that the ViT does not have.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"layers '{text}': whole numbers with commas between, like 2,5,8,11") from error
    for number in numbers:
        if not -vit.depth <= number < vit.depth:
            raise InputError(f"layer {number}: {vit.name} has {vit.depth} layers (0 to {vit.depth - 1})")
    return sorted({number % vit.depth for number in numbers})


def facts_of(vit: ViTFeatures) -> dict[str, str]:
    """What made an image, for its file."""
    return {"splice_ff": splice_ff.__version__, "backbone": vit.name, "backbone_sha256": vit.fingerprint}
