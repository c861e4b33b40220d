"""`splice-ff optimize`: the per-pair mode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import splice_ff
from splice_ff.commands._options import (
    REPLACED,
    Appearance,
    Debug,
    Device,
    Output,
    PresetBackbone,
    Quiet,
    Seed,
    State,
    Structure,
    Weights,
    check_backbones,
    errors,
    expanded,
    find_backbone,
    find_device,
    load,
)
from splice_ff.commands._runs import end_pair, resume, take_steps, write_best


def optimize(
    structure: Structure,
    appearance: Appearance,
    output: Output = Path("out.png"),
    preset: Annotated[str, typer.Option(help="fast (minutes) or paper (as published: hours).")] = "fast",
    backbone: PresetBackbone = None,
    weights: Weights = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps; by default 600 of fast, 10000 of paper.")] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Shorter side, in pixels, at which to work; by default 224 of fast, the images' own of paper. The "
            "output has the structure image's size."
        ),
    ] = None,
    generator: Annotated[str | None, typer.Option(help="published, the default of both presets, or refined.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, or auto (the faster one here); by default auto of fast, fp32 of paper."),
    ] = None,
    seed: Seed = 0,
    preview_every: Annotated[
        int | None, typer.Option(min=1, help="Write the image every so many steps, as OUT-step00100.png.")
    ] = None,
    save_generator_to: Annotated[
        Path | None,
        typer.Option(
            "--save-generator",
            help=f"Keep the trained generator (.safetensors) for `splice-ff apply`. {REPLACED}",
            callback=expanded,
        ),
    ] = None,
    state: State = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile; for long runs on a GPU.")] = False,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a generator on one pair of images: minutes, best quality.

    ctrl-C writes the best image so far.

    Example: `splice-ff optimize cat.jpg raccoon.jpg -o cat-as-raccoon.png`
    """
    with errors(debug):
        from splice_ff.images import check_readable, check_writable
        from splice_ff.per_pair.recipes import check_image_size, make_recipe
        from splice_ff.utils.files import check_not_input, check_place

        # What can be known before torch is there is said before.
        recipe = make_recipe(preset, steps=steps, size=size, generator=generator, precision=precision)
        for path in (appearance, structure):
            height, width = check_readable(path)
            check_image_size(height, width, recipe.size, str(path))
        check_writable(output, (height, width))
        check_not_input(output, [structure, appearance])
        for path in (structure, appearance):
            if preview_every and path.name.startswith(f"{output.stem}-step"):  # a name that a preview may take
                check_not_input(output.with_name(path.name), [path])
        for place in (save_generator_to, state):
            if place:
                check_place(place)
                check_not_input(place, [structure, appearance, weights])
        check_backbones([backbone], weights)

        from splice_ff.images import save_image
        from splice_ff.losses import Losses
        from splice_ff.per_pair.generator_file import save_generator
        from splice_ff.per_pair.optimizer import PairOptimizer

        ours, theirs = (load(path, quiet) for path in (structure, appearance))
        vit = find_backbone(backbone, weights, recipe)
        where = find_device(device)
        run = PairOptimizer(ours.rgb, theirs.rgb, vit, recipe, seed=seed, compile=compile, device=where)
        resume(run, state, quiet)

        def preview() -> None:
            if preview_every and run.step_count % preview_every == 0:
                name = output.with_name(f"{output.stem}-step{run.step_count:05d}{output.suffix}")
                save_image(name, run.preview(), alpha=ours.alpha)

        failure = take_steps(run, Losses.floats, quiet, state=state, after_step=preview)
        facts = {"splice_ff": splice_ff.__version__, "structure": structure.name, "appearance": appearance.name}
        result = write_best(run, failure, output, ours, facts | run.settings())
        if save_generator_to:
            save_generator(result.generator, result.settings, save_generator_to)
        end_pair(run, failure, result, output, quiet)
