"""`splice-ff attention`: where the [CLS] token looks."""

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


def attention(
    image: Annotated[Path, typer.Argument(help="Image to look at.", show_default=False, callback=expanded)],
    output: Output = Path("attention.png"),
    layer: Layer = -1,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = 224,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where the [CLS] token looks, head by head."""
    with errors(debug):
        check_files([image], output, [backbone], weights)
        from splice_ff.analysis.attention import cls_attention
        from splice_ff.analysis.figures import attention_figure, figure_image
        from splice_ff.images import save_image

        rgb = load(image, quiet).rgb
        vit = find_backbone(backbone, weights).to(find_device(device))
        (number,) = check_layers([layer], vit)
        heads = cls_attention(vit, rgb, number, size)[0]
        figure = attention_figure(rgb[0], heads, f"input ({vit.name}, layer {number})")
        save_image(output, figure_image(figure), settings=facts_of(vit) | {"layer": str(number)})
        if not quiet:
            say(str(output))
