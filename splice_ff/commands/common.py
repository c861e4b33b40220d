"""What the commands share: their options, and how they speak and fail."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from splice_ff.errors import InputError
from splice_ff.images import LoadedImage, load_image
from splice_ff.losses import Losses
from splice_ff.pair import default_device
from splice_ff.pair_optimizer import PairOptimizer

Structure = Annotated[Path, typer.Argument(help="Picture whose layout is kept.", show_default=False)]
Appearance = Annotated[Path, typer.Argument(help="Picture whose look is taken.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Picture to write; the suffix sets the format.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to; made if it is not there.")]
Size = Annotated[
    int | None,
    typer.Option(help="Shorter side, in pixels, at which to work. The output has the structure picture's size."),
]
Backbone = Annotated[
    str | None,
    typer.Option(help="Frozen ViT: dino_vits8, dino_vitb8, vit_mini, …, a timm name or a folder."),
]
Weights = Annotated[Path | None, typer.Option(help="The backbone's weights: .safetensors, .pth, or a folder.")]
Seed = Annotated[int, typer.Option(help="Same seed, same machine: same picture.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … By default a GPU if there is one.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes; errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """One line and exit status 2 for what the user can mend; 130 for ctrl-C where the command does not handle it."""
    try:
        yield
    except InputError as error:
        if debug:
            raise
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error


def say(message: str) -> None:
    """Write a line to stderr: stdout is for results."""
    typer.echo(message, err=True)


def load(path: Path, quiet: bool) -> LoadedImage:
    """Read a picture; say what was done to it (a frame chosen, ...) unless quiet."""
    image = load_image(path)
    if not quiet:
        for note in image.notes:
            say(f"note: {path}: {note}")
    return image


def find_device(name: str | None) -> torch.device:
    """The device asked for, or the default one.

    Raises:
        InputError: it cannot be used here.
    """
    try:
        device = torch.device(name) if name else default_device()
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def progress(run: PairOptimizer, quiet: bool) -> Iterator[Losses]:
    """Take the remaining steps under a progress bar that shows the losses.

    Raises:
        KeyboardInterrupt: between two steps; at the second ctrl-C at once.
    """
    with bar(run.recipe.steps, "step", quiet, run.step_count) as shown, _noted_interrupts() as noted:
        while not run.done:
            losses = run.step()
            shown.set_postfix({k: f"{v:.3f}" for k, v in losses.floats().items()}, refresh=False)
            shown.update()
            yield losses
            if noted:
                raise KeyboardInterrupt


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """While inside, the first ctrl-C is only noted: raised in the midst of a callback it would be lost."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def bar(total: int, unit: str, quiet: bool, initial: int = 0) -> tqdm:  # type: ignore[type-arg]
    """A progress bar on stderr."""
    slow = 0.1 if sys.stderr.isatty() else 10  # a log file needs no animation
    return tqdm(total=total, initial=initial, disable=quiet, unit=unit, mininterval=slow)
