"""`splice-ff invert`: images that have the same features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splice_ff.commands._options import (
    Backbone,
    Debug,
    Device,
    Folder,
    Quiet,
    Seed,
    State,
    Weights,
    errors,
    expanded,
    find_backbone,
    find_device,
    load,
    say,
)
from splice_ff.commands._runs import end_run, resume, take_steps
from splice_ff.commands._vit import ViTSize, check_files, check_layers

if TYPE_CHECKING:
    from splice_ff.analysis.inversion import Inversion


def invert(
    image: Annotated[
        Path, typer.Argument(help="Image whose features are inverted.", show_default=False, callback=expanded)
    ],
    output: Folder = Path("inverted"),
    feature: Annotated[str, typer.Option(help="cls, keys or self_similarity.")] = "keys",
    layers: Annotated[str, typer.Option(help="Layers, from 0 or negative from the end: 2,5,8,11.")] = "-1",
    seeds: Annotated[int, typer.Option(min=1, max=64, help="Repeated runs from different noise.")] = 1,
    prior: Annotated[
        str, typer.Option(help="cnn: a network paints the image. pixels: optimized directly, for contrast.")
    ] = "cnn",
    steps: Annotated[int, typer.Option(help="Number of steps. Published: 20000.")] = 300,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = 224,
    seed: Seed = 0,
    preview_every: Annotated[
        int | None, typer.Option(min=1, help="Write the grid every so many steps, as grid-step00100.png.")
    ] = None,
    state: State = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find images that have the same features: what a feature holds comes back.

    Writes grid.png and the single images; existing ones are replaced. ctrl-C writes the images so far.

    Example: `splice-ff invert cat.jpg --feature cls --layers 2,5,-1 --seeds 2 -o inverted`
    """
    with errors(debug):
        from splice_ff.analysis.recipes import InversionRecipe, parse_layers
        from splice_ff.utils.files import check_not_input, check_place

        # The recipe checks the two names itself.
        recipe, numbers = InversionRecipe(feature, prior, steps, size), parse_layers(layers)  # type: ignore[arg-type]
        check_files([image], output / "grid.png", [backbone], weights)
        if image.name.startswith(("grid-step", f"{feature}-layer")):  # a name that this run may write
            check_not_input(output / image.name, [image])
        if state:
            check_place(state)

        from splice_ff.analysis.figures import figure_image, inversion_figure
        from splice_ff.analysis.inversion import FeatureInversion
        from splice_ff.images import save_image

        rgb = load(image, quiet).rgb
        vit = find_backbone(backbone, weights).to(find_device(device))
        run = FeatureInversion(vit, rgb, recipe, layers=check_layers(numbers, vit), seeds=range(seed, seed + seeds))
        resume(run, state, quiet)

        def write_grid(name: str) -> list[Inversion]:
            inversions = run.result()
            figure = inversion_figure(run.image[0].cpu(), inversions, feature)
            save_image(output / name, figure_image(figure), settings=run.settings())
            return inversions

        def preview() -> None:
            if preview_every and run.step_count % preview_every == 0:
                write_grid(f"grid-step{run.step_count:05d}.png")

        failure = take_steps(
            run, lambda distances: {"distance": distances.mean().item()}, quiet, state=state, after_step=preview
        )
        for inversion in write_grid("grid.png"):
            facts = {"layer": str(inversion.layer), "seed": str(inversion.seed), "image": image.name}
            facts |= {"step": str(run.step_count), "distance": f"{inversion.distance:.6g}"}
            facts |= {"start": f"{inversion.start:.6g}"}
            path = output / f"{feature}-layer{inversion.layer:02d}-seed{inversion.seed}.png"
            save_image(path, inversion.image, settings=run.settings() | facts)
            if not quiet:
                say(f"{path}: distance {inversion.distance:.4g}, from {inversion.start:.4g} at the start")
        end_run(run, failure, f"the images so far are in {output}")
