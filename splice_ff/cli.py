"""The `splice-ff` command."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

import splice_ff
from splice_ff import doctor as doctor_report
from splice_ff.checkpoint import load_generator, save_generator
from splice_ff.errors import InputError
from splice_ff.images import LoadedImage, check_place, check_writable, load_image, save_image
from splice_ff.losses import Losses
from splice_ff.pair import apply_generator, choose_backbone, default_device, make_recipe
from splice_ff.pair_optimizer import DivergedError, PairOptimizer, PairResult, load_state, save_state

SAVE_STATE_EVERY = 100

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Paint one picture with the look of another: its layout stays, its appearance changes.",
)

Structure = Annotated[Path, typer.Argument(help="Picture whose layout is kept.", show_default=False)]
Appearance = Annotated[Path, typer.Argument(help="Picture whose look is taken.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Picture to write; the suffix sets the format.")]
Size = Annotated[
    int | None,
    typer.Option(help="Shorter side, in pixels, at which to work. The output has the structure picture's size."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … By default a GPU if there is one.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes; errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
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
    weights: Annotated[
        Path | None, typer.Option(help="The backbone's weights: .safetensors, .pth, or a folder.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps instead of the preset's.")] = None,
    size: Size = None,
    generator: Annotated[str | None, typer.Option(help="published or refined.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, or auto (the faster one here).")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same picture.")] = 0,
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
    with _errors(debug):
        recipe = make_recipe(preset, steps=steps, size=size, generator=generator, precision=precision)
        check_writable(output)
        for path in (save_generator_to, state):
            if path:
                check_place(path)
        images = [_load(path, quiet) for path in (structure, appearance)]
        vit, notice = choose_backbone(recipe, backbone, weights)
        if notice:
            _say(f"note: {notice}")  # also when quiet: it changes the picture
        run = PairOptimizer(
            images[0].rgb, images[1].rgb, vit, recipe, seed=seed, compile=compile, device=_device(device)
        )
        if state and state.exists():
            load_state(run, state)
            if not quiet:
                _say(f"going on from step {run.step_count} of {state}")
        failure: BaseException | None = None
        try:
            for _ in _progress(run, quiet):
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
            _say(f"interrupted at step {run.step_count}; the best picture so far is in {output}")
            raise typer.Exit(130)
        if failure:
            raise InputError(f"{failure}; the last good picture is in {output}") from failure
        if not quiet:
            total, *rest = (f"{k} {v:.4f}" for k, v in result.losses.items())
            _say(f"{output}: step {result.step} of {run.step_count}, {total} ({', '.join(rest)})")


@app.command()
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
    with _errors(debug):
        check_writable(output)
        net, settings = load_generator(generator)
        picture = _load(image, quiet=False)
        made = apply_generator(net.to(_device(device)), picture.rgb, size or _trained_size(settings))
        facts = settings | {"splice_ff": splice_ff.__version__, "applied_to": image.name}
        save_image(output, made, alpha=picture.alpha, settings=facts)
        _say(str(output))


@app.command()
def doctor(debug: Debug = False) -> None:
    """Show versions, devices, number formats, backbones and checkpoints at hand."""
    with _errors(debug):
        for line in doctor_report.report():
            typer.echo(line)


def main() -> None:
    """Entry point of the console script."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # the reader cannot act on them
    app()


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One line and exit status 2 for what the user can mend; 130 for ctrl-C outside the optimisation."""
    try:
        yield
    except InputError as error:
        if debug:
            raise
        _say(f"error: {error}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _load(path: Path, quiet: bool) -> LoadedImage:
    image = load_image(path)
    if not quiet:
        for note in image.notes:
            _say(f"note: {path}: {note}")
    return image


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name) if name else default_device()
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _progress(run: PairOptimizer, quiet: bool) -> Iterator[Losses]:
    """Take the remaining steps under a progress bar that shows the losses."""
    slow = 0.1 if sys.stderr.isatty() else 10  # a log file needs no animation
    with tqdm(total=run.recipe.steps, initial=run.step_count, disable=quiet, unit="step", mininterval=slow) as bar:
        while not run.done:
            losses = run.step()
            bar.set_postfix({k: f"{v:.3f}" for k, v in losses.floats().items()}, refresh=False)
            bar.update()
            yield losses


def _write(output: Path, result: PairResult, structure: LoadedImage, facts: dict[str, str]) -> None:
    losses = {f"loss_{k}": f"{v:.6g}" for k, v in result.losses.items()}
    settings = {"splice_ff": splice_ff.__version__, **facts, **result.settings, "step": str(result.step), **losses}
    save_image(output, result.image, alpha=structure.alpha, settings=settings)


def _trained_size(settings: dict[str, str]) -> int | None:
    return None if settings["size"] == "None" else int(settings["size"])
