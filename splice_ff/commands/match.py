"""`splice-ff match`: which parts of two images the ViT takes for the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import (
    Backbone,
    Debug,
    Device,
    Output,
    Quiet,
    Weights,
    errors,
    expanded,
    find_backbone,
    find_device,
    load,
    say,
)
from splice_ff.commands._vit import Layer, ViTSize, check_files, check_layers, facts_of


def match(
    image_a: Annotated[Path, typer.Argument(help="First image.", show_default=False, callback=expanded)],
    image_b: Annotated[Path, typer.Argument(help="Second image.", show_default=False, callback=expanded)],
    output: Output = Path("match.png"),
    layer: Layer = -1,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = 224,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show which parts of two images the ViT takes for the same: best buddies among the keys.

    A transfer paints along such ties. Where there are few, or wrong ones, it must fail.
    """
    with errors(debug):
        check_files([image_a, image_b], output, [backbone], weights)
        from splice_ff.analysis.correspondence import match as match_images
        from splice_ff.analysis.correspondence import match_strength
        from splice_ff.analysis.figures import figure_image, matches_figure
        from splice_ff.images import save_image

        a, b = (load(path, quiet).rgb for path in (image_a, image_b))
        vit = find_backbone(backbone, weights).to(find_device(device))
        (number,) = check_layers([layer], vit)
        matches = match_images(vit, a, b, number, size)
        verdict = match_strength(vit, a, b).text
        figure = matches_figure(a[0], b[0], matches, (image_a.name, image_b.name), verdict)
        save_image(output, figure_image(figure), settings=facts_of(vit) | {"layer": str(number), "verdict": verdict})
        if not quiet:
            say(f"{output}: {verdict}")
