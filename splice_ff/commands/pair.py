"""`splice-ff optimize` and `apply`: the per-pair mode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import splice_ff
from splice_ff.checkpoint import load_generator, save_generator
from splice_ff.commands.common import (
    Appearance,
    Debug,
    Device,
    Output,
    Quiet,
    Seed,
    Size,
    Structure,
    Weights,
    errors,
    find_device,
    load,
    progress,
    say,
)
from splice_ff.correspondence import match_strength
from splice_ff.errors import InputError
from splice_ff.images import LoadedImage, check_place, check_writable, save_image
from splice_ff.pair import apply_generator, choose_backbone, make_recipe
from splice_ff.pair_optimizer import DivergedError, PairOptimizer, PairResult, load_state, save_state

SAVE_STATE_EVERY = 100


def optimize(
    structure: Structure,
    appearance: Appearance,
    output: Output = Path("out.png"),
    preset: Annotated[str, typer.Option(help="fast (minutes) or paper (as published: hours).")] = "fast",
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Frozen ViT: dino_vits8, dino_vitb8, vit_mini, …, a timm name or a folder. By default the "
            "preset's; the bundled vit_mini if its weights cannot be had."
        ),
    ] = None,
    weights: Weights = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps instead of the preset's.")] = None,
    size: Size = None,
    generator: Annotated[str | None, typer.Option(help="published or refined.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, or auto (the faster one here).")] = None,
    seed: Seed = 0,
    preview_every: Annotated[
        int | None, typer.Option(min=1, help="Write the picture every so many steps, as OUT-step00100.png.")
    ] = None,
    save_generator_to: Annotated[
        Path | None,
        typer.Option("--save-generator", help="Keep the trained generator (.safetensors) for `splice-ff apply`."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Keep the run here, every 100 steps and on ctrl-C; if the file exists, go on from it."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile; for long runs on a GPU.")] = False,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a generator on one pair of pictures: minutes, best quality.

    ctrl-C writes the best picture so far.

    Example: `splice-ff optimize cat.jpg tiger.jpg -o tiger-cat.png`
    """  # fmt: skip
    with errors(debug):
        recipe = make_recipe(preset, steps=steps, size=size, generator=generator, precision=precision)
        check_writable(output)
        for path in (save_generator_to, state):
            if path:
                check_place(path)
        images = [load(path, quiet) for path in (structure, appearance)]
        vit, notice = choose_backbone(recipe, backbone, weights)
        if notice:
            say(f"note: {notice}")  # also when quiet: it changes the picture
        run = PairOptimizer(
            images[0].rgb, images[1].rgb, vit, recipe, seed=seed, compile=compile, device=find_device(device)
        )
        if not quiet and (strength := match_strength(vit, images[0].rgb, images[1].rgb)).is_weak:
            say(f"note: {strength.text}")
        if state and state.exists():
            load_state(run, state)
            if not quiet:
                say(f"going on from step {run.step_count} of {state}")
        failure: BaseException | None = None
        try:
            for _ in progress(run, quiet):
                if preview_every and run.step_count % preview_every == 0:
                    name = output.with_name(f"{output.stem}-step{run.step_count:05d}{output.suffix}")
                    save_image(name, run.preview(), alpha=images[0].alpha)
                if state and run.step_count % SAVE_STATE_EVERY == 0:
                    save_state(run, state)
        except (KeyboardInterrupt, DivergedError) as error:
            failure = error
        try:
            result = run.result()
        except DivergedError as error:
            raise InputError(f"{failure or error}; no picture was made") from error
        facts = {"structure": structure.name, "appearance": appearance.name}
        _write(output, result, images[0], facts)
        if save_generator_to:
            save_generator(result.generator, result.settings, save_generator_to)
        if state and not isinstance(failure, DivergedError):
            save_state(run, state)
        if isinstance(failure, KeyboardInterrupt):
            say(f"interrupted at step {run.step_count}; the best picture so far is in {output}")
            raise typer.Exit(130)
        if failure:
            raise InputError(f"{failure}; the last good picture is in {output}") from failure
        if not quiet:
            total, *rest = (f"{k} {v:.4f}" for k, v in result.losses.items())
            say(f"{output}: step {result.step} of {run.step_count}, whole picture: {total} ({', '.join(rest)})")


def apply(
    generator: Annotated[Path, typer.Argument(help="File written by `optimize --save-generator`.")],
    image: Annotated[Path, typer.Argument(help="Picture to repaint.")],
    output: Output = Path("out.png"),
    size: Size = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Run a generator that `optimize` trained on another picture: well under a second.

    It has learned one look on one layout; expect good results on pictures like its own.
    """
    with errors(debug):
        check_writable(output)
        net, settings = load_generator(generator)
        picture = load(image, quiet=False)
        made = apply_generator(net.to(find_device(device)), picture.rgb, size or _trained_size(settings))
        facts = settings | {"splice_ff": splice_ff.__version__, "applied_to": image.name}
        save_image(output, made, alpha=picture.alpha, settings=facts)
        say(str(output))


def _write(output: Path, result: PairResult, structure: LoadedImage, facts: dict[str, str]) -> None:
    losses = {f"loss_{k}": f"{v:.6g}" for k, v in result.losses.items()}
    settings = {"splice_ff": splice_ff.__version__, **facts, **result.settings, "step": str(result.step), **losses}
    save_image(output, result.image, alpha=structure.alpha, settings=settings)


def _trained_size(settings: dict[str, str]) -> int | None:
    return None if settings["size"] == "None" else int(settings["size"])
