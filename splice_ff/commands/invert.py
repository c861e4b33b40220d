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
    find_backbone,
    find_device,
    load,
    say,
)
from splice_ff.commands._runs import end_run, resume, take_steps
from splice_ff.commands._vit import FACET_NAMES, ViTSize, parse_layers
from splice_ff.utils.extras import need

if TYPE_CHECKING:
    from splice_ff.analysis.inversion import FeatureInversion


def invert(
    image: Annotated[Path, typer.Argument(help="Image whose features are inverted.", show_default=False)],
    output: Folder = Path("inverted"),
    feature: Annotated[str, typer.Option(help="cls, keys or self_similarity.")] = "keys",
    layers: Annotated[str, typer.Option(help="Layers, from 0 or negative from the end: 2,5,8,11.")] = "-1",
    seeds: Annotated[int, typer.Option(min=1, help="Repeated runs from different noise.")] = 1,
    prior: Annotated[
        str, typer.Option(help="cnn: a network paints the image. pixels: optimized directly, for contrast.")
    ] = "cnn",
    steps: Annotated[int, typer.Option(help="Number of steps. Published: 20000.")] = 300,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = None,
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

    Writes grid.png and the single images. ctrl-C writes what is there.

    Example: `splice-ff invert cat.jpg --feature cls --layers 2,5,8,11 --seeds 2 -o inverted`
    """
    with errors(debug):
        need("matplotlib", extra="features")
        from splice_ff.analysis.inversion import FeatureInversion, InversionRecipe
        from splice_ff.images import check_writable, save_image
        from splice_ff.utils.files import check_place
        from splice_ff.vit.inputs import VIT_SIZE

        # The recipe checks the two names itself.
        recipe = InversionRecipe(feature, prior, steps, size or VIT_SIZE)  # type: ignore[arg-type]
        check_writable(output / "grid.png")
        if state:
            check_place(state)
        picture = load(image, quiet).rgb
        vit = find_backbone(backbone, weights)
        where, numbers = find_device(device), parse_layers(layers, vit)
        run = FeatureInversion(picture, vit, recipe, layers=numbers, seeds=range(seed, seed + seeds), device=where)
        resume(run, state, quiet)

        def preview() -> None:
            if preview_every and run.step_count % preview_every == 0:
                _write_grid(run, output / f"grid-step{run.step_count:05d}.png")

        failure = take_steps(
            run, lambda distances: {"distance": distances.mean().item()}, quiet, state=state, after_step=preview
        )
        for found in run.result():
            facts = run.settings() | {"layer": str(found.layer), "seed": str(found.seed), "image": image.name}
            facts |= {"step": str(run.step_count), "distance": f"{found.distance:.6g}", "start": f"{found.start:.6g}"}
            name = f"{recipe.feature}-layer{found.layer:02d}-seed{found.seed}.png"
            save_image(output / name, found.image, settings=facts)
            if not quiet:
                say(f"{output / name}: distance {found.distance:.4g}, from {found.start:.4g} at the start")
        _write_grid(run, output / "grid.png")
        end_run(run, failure, f"the images so far are in {output}")


def _write_grid(run: FeatureInversion, path: Path) -> None:
    """Input and inversions: layers across, seeds down, with the distances."""
    from splice_ff.analysis.figures import grid_figure, picture_of
    from splice_ff.images import save_image

    found = run.result()
    seeds, layers = list(dict.fromkeys(f.seed for f in found)), list(dict.fromkeys(f.layer for f in found))
    by_place = {(f.seed, f.layer): f for f in found}
    rows = [[run.image[0].cpu(), *(by_place[seed, n].image for n in layers)] for seed in seeds]
    captions = [["", *(f"distance {by_place[seed, n].distance:.3g}" for n in layers)] for seed in seeds]
    what = FACET_NAMES.get(run.recipe.feature, run.recipe.feature)
    columns = ["input", *(f"{what}, layer {n}" for n in layers)]
    names = [f"seed {s}" for s in seeds] if len(seeds) > 1 else [""]
    save_image(path, picture_of(grid_figure(rows, columns, names, captions)), settings=run.settings())
