"""What the commands that show a ViT's features share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import splice_ff
from splice_ff.commands._options import check_backbones
from splice_ff.errors import InputError
from splice_ff.utils.extras import need

if TYPE_CHECKING:
    from splice_ff.vit.features import ViTFeatures

ViTSize = Annotated[int, typer.Option(min=33, max=2048, help="Shorter side, in pixels, of what the ViT sees.")]
Layer = Annotated[int, typer.Option(help="Layer of the ViT, from 0; -1 is the deepest.")]


def check_files(images: Sequence[Path], output: Path, backbones: Sequence[str | None], weights: Path | None) -> None:
    """Refuse what can be refused before torch is imported, which takes seconds.

    Raises:
        InputError: no matplotlib; an image that cannot be read; an output that cannot be written, or is one of the
            images; a backbone's folder or file that cannot be one.
    """
    need("matplotlib", extra="features")
    from splice_ff.images import check_readable, check_writable
    from splice_ff.utils.files import check_not_input

    check_writable(output)
    check_not_input(output, images)
    for image in images:
        check_readable(image)
    check_backbones(backbones, weights)


def check_layers(numbers: Sequence[int], vit: ViTFeatures) -> list[int]:
    """Layers from 0, in order; negative numbers count from the end.

    Raises:
        InputError: a layer that the ViT does not have.
    """
    for number in numbers:
        if not -vit.depth <= number < vit.depth:
            raise InputError(f"layer {number}: {vit.name} has {vit.depth} layers (0 to {vit.depth - 1})")
    return sorted({number % vit.depth for number in numbers})


def facts_of(vit: ViTFeatures) -> dict[str, str]:
    """What made an image, for its file."""
    return {"splice_ff": splice_ff.__version__, "backbone": vit.name, "backbone_sha256": vit.fingerprint}
