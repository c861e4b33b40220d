"""`splice-ff embed`: an image's look in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._one_shot import (
    DEFAULT_MODEL,
    Backbone,
    BackboneWeights,
    Model,
    Precision,
    Weight,
    check_number_of_weights,
    check_precision,
    embed_images,
    facts_of,
    load_model,
)
from splice_ff.commands._options import REPLACED, Debug, Device, Quiet, check_backbones, errors, expanded, load, say


def embed(
    appearance: Annotated[
        list[Path],
        typer.Argument(help="Image whose look is kept; several are mixed.", show_default=False, callback=expanded),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"File to write (.safetensors). {REPLACED}", callback=expanded)
    ] = Path("look.safetensors"),
    model: Model = DEFAULT_MODEL,
    weight: Weight = None,
    precision: Precision = "fp32",
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Keep the look of an image, for `splice-ff transfer --look`. It fits only the model that made it.

    Example: `splice-ff embed raccoon.jpg -o raccoon.safetensors`
    """
    with errors(debug):
        from splice_ff.images import check_readable
        from splice_ff.utils.files import check_not_input, check_place

        check_number_of_weights(appearance, weight)
        check_precision(precision)
        check_place(output)
        check_not_input(output, appearance)
        for path in appearance:
            check_readable(path)
        check_backbones([backbone], backbone_weights)

        from splice_ff.one_shot.tokens_file import save_look

        images = [load(path, quiet) for path in appearance]
        splice = load_model(model, backbone, backbone_weights, device, precision)
        save_look(
            output, splice, embed_images(splice, images, weight), facts_of(model, splice, None, appearance, weight)
        )
        if not quiet:
            say(str(output))
