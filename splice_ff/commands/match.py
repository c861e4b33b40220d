"""`splice-ff attention`, `match` and `explain`: where the backbone looks, what it takes for the same, and why a result
looks as it does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import (
    Appearance,
    Backbone,
    Debug,
    Device,
    Output,
    Quiet,
    Structure,
    Weights,
    errors,
    find_backbone,
    find_device,
    load,
    say,
)
from splice_ff.commands._vit import Layer, ViTSize, facts_of, parse_layers
from splice_ff.utils.extras import need


def attention(
    image: Annotated[Path, typer.Argument(help="Image to look at.", show_default=False)],
    output: Output = Path("attention.png"),
    layer: Layer = -1,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where the [CLS] token looks, head by head."""
    with errors(debug):
        need("matplotlib", extra="features")
        from splice_ff.analysis.attention import cls_attention
        from splice_ff.analysis.figures import attention_picture, picture_of, wrapped_figure
        from splice_ff.images import check_writable, save_image
        from splice_ff.vit.inputs import VIT_SIZE, ViTInput

        check_writable(output)
        picture = load(image, quiet).rgb
        vit = find_backbone(backbone, weights).to(find_device(device))
        (number,) = parse_layers(str(layer), vit)
        seen = ViTInput(size or VIT_SIZE).resize(picture.to(vit.mean.device), vit.patch_size)
        heads = cls_attention(vit, seen, number)[0]
        maps = [("mean of heads", heads.mean(0)), *((f"head {i}", head) for i, head in enumerate(heads))]
        cells = [picture[0], *(attention_picture(found.cpu(), picture[0]) for _, found in maps)]
        captions = [f"input ({vit.name}, layer {number})", *(name for name, _ in maps)]
        figure = wrapped_figure(cells, captions, across=5)
        save_image(output, picture_of(figure), settings=facts_of(vit) | {"layer": str(number)})
        if not quiet:
            say(str(output))


def match(
    image_a: Annotated[Path, typer.Argument(help="First image.", show_default=False)],
    image_b: Annotated[Path, typer.Argument(help="Second image.", show_default=False)],
    output: Output = Path("match.png"),
    layer: Layer = -1,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show which parts of two images the ViT takes for the same: best buddies among the keys.

    A transfer paints along such ties. Where there are few, or wrong ones, it must fail.
    """
    with errors(debug):
        need("matplotlib", extra="features")
        from splice_ff.analysis.correspondence import match_images, match_strength
        from splice_ff.analysis.figures import matches_figure, picture_of
        from splice_ff.images import check_writable, save_image
        from splice_ff.vit.inputs import VIT_SIZE

        check_writable(output)
        a, b = (load(path, quiet).rgb for path in (image_a, image_b))
        vit = find_backbone(backbone, weights).to(find_device(device))
        (number,) = parse_layers(str(layer), vit)
        matches = match_images(vit, a, b, number, size or VIT_SIZE)
        text = match_strength(vit, a, b).text
        figure = matches_figure(a[0], b[0], matches, (image_a.name, image_b.name), text)
        save_image(output, picture_of(figure), settings=facts_of(vit) | {"layer": str(number), "verdict": text})
        if not quiet:
            say(f"{output}: {len(matches.similarity)} pairs drawn, of layer {number}; as the losses see it, {text}")


def explain(
    structure: Structure,
    appearance: Appearance,
    result: Annotated[Path, typer.Argument(metavar="OUTPUT", help="What was made of the two.", show_default=False)],
    output: Output = Path("explained.png"),
    backbone: Backbone = None,
    weights: Weights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show why a result looks as it does: structure loss by patch, [CLS] distance by layer, what was matched.

    Prints a verdict: whether the match of the two images' meanings is weak.

    Example: `splice-ff explain cat.jpg tiger.jpg tiger-cat.png -o explained.png`
    """
    with errors(debug):
        need("matplotlib", extra="features")
        from splice_ff.analysis.explain import explain as explain_result
        from splice_ff.analysis.figures import explanation_figure, picture_of
        from splice_ff.images import check_writable, save_image

        check_writable(output)
        ours, look, made = (load(path, quiet).rgb for path in (structure, appearance, result))
        vit = find_backbone(backbone, weights).to(find_device(device))
        found = explain_result(vit, ours, look, made)
        figure = explanation_figure(ours[0], look[0], made[0], found)
        facts = facts_of(vit) | {"verdict": found.strength.text, "loss_structure": f"{found.structure_loss:.6g}"}
        save_image(output, picture_of(figure), settings=facts)
        typer.echo(found.strength.text)
        if not quiet:
            say(str(output))
