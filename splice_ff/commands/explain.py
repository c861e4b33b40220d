"""`splice-ff explain`: why a result looks as it does."""

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
    expanded,
    find_backbone,
    find_device,
    load,
    say,
)
from splice_ff.commands._vit import check_files, facts_of


def explain(
    structure: Structure,
    appearance: Appearance,
    result: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="What was made of the two.", show_default=False, callback=expanded)
    ],
    output: Output = Path("explained.png"),
    backbone: Backbone = None,
    weights: Weights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show why a result looks as it does: structure loss by patch, [CLS] distance by layer, what was matched.

    Prints a verdict: whether the match of the two images' meanings is weak.

    Example: `splice-ff explain cat.jpg raccoon.jpg cat-as-raccoon.png -o explained.png`
    """
    with errors(debug):
        check_files([structure, appearance, result], output, [backbone], weights)
        from splice_ff.analysis.explain import explain as explain_transfer
        from splice_ff.analysis.figures import explanation_figure, figure_image
        from splice_ff.images import save_image

        before, target, after = (load(path, quiet).rgb for path in (structure, appearance, result))
        vit = find_backbone(backbone, weights).to(find_device(device))
        explanation = explain_transfer(vit, before, target, after)
        verdict, loss = explanation.strength.text, explanation.structure_loss
        figure = explanation_figure(before[0], target[0], after[0], explanation)
        save_image(
            output, figure_image(figure), settings=facts_of(vit) | {"verdict": verdict, "loss_structure": f"{loss:.6g}"}
        )
        typer.echo(verdict)
        if not quiet:
            say(str(output))
