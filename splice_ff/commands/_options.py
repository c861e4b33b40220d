"""What the commands share: their options, and how they speak and fail."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splice_ff.errors import InputError, first_line, printable
from splice_ff.utils.console import hush_libraries

if TYPE_CHECKING:
    import torch

    from splice_ff.images import LoadedImage
    from splice_ff.per_pair.recipes import Recipe
    from splice_ff.vit.features import ViTFeatures


def expanded(path: Any) -> Any:
    """Callback of options with paths: `~` is the home folder, also where no shell replaces it (`-o=~/a.png`)."""
    if isinstance(path, list):
        return [expanded(one) for one in path]
    return path.expanduser() if isinstance(path, Path) else path


def _hush(quiet: bool) -> bool:
    hush_libraries(quiet)
    return quiet


REPLACED = "An existing file is replaced, unless it is an input."

Structure = Annotated[Path, typer.Argument(help="Image whose layout is kept.", show_default=False, callback=expanded)]
Appearance = Annotated[Path, typer.Argument(help="Image whose look is taken.", show_default=False, callback=expanded)]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", help=f"Image to write; the suffix sets the format. {REPLACED}", callback=expanded),
]
Folder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write to; created if it is missing.", callback=expanded)
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="Frozen ViT: dino_vitb8, vit_s14_robust, …, a timm name or folder. By default dino_vits8; the "
        "bundled vit_s14_robust if its weights cannot be had."
    ),
]
PresetBackbone = Annotated[
    str | None,
    typer.Option(
        help="Frozen ViT: dino_vits8, dino_vitb8, vit_s14_robust, …, a timm name or folder. By default the "
        "preset's; the bundled vit_s14_robust if its weights cannot be had."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="The backbone's weights: .safetensors, .pth, or a folder. By default those that its name stands for.",
        callback=expanded,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same machine: same image.")]
State = Annotated[
    Path | None,
    typer.Option(
        help="Keep the run here, every 100 steps and at its end; if the file exists, go on from it. --steps may grow.",
        callback=expanded,
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … By default a GPU if there is one.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress; only errors, and a note if a backbone is replaced.", callback=_hush
    ),
]
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
    except Exception as error:
        message = out_of_memory(error) or builds_differ(error)
        if debug or not message:
            raise
        say(f"error: {message}")
        raise typer.Exit(2) from error


def out_of_memory(error: BaseException, side: int | None = None) -> str | None:
    """What to say of an error that means too little memory, for images with a shorter side of so many pixels.

    None of any other error.
    """
    if "torch" not in sys.modules and not isinstance(error, MemoryError):
        return None
    from splice_ff.utils.machine import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    at, size = (f" at {side} pixels", f"--size {max(64, side // 2)}") if side else ("", "a smaller --size")
    return f"out of memory{at}; try {size}, or a smaller --backbone"


def builds_differ(error: BaseException) -> str | None:
    """What to say of the error that importing torchvision gives beside a torch of another build; None of any other."""
    if not str(error).startswith("operator torchvision::"):
        return None
    versions = " and ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
    return f"{versions} do not fit together; install both with one pip command, from one index"


def say(message: str) -> None:
    """Write a line to stderr: stdout is for results."""
    typer.echo(printable(message), err=True)


def load(path: Path, quiet: bool) -> LoadedImage:
    """Read an image; say what was done to it (a frame chosen, ...) unless quiet."""
    from splice_ff.images import load_image

    image = load_image(path)
    if not quiet:
        for note in image.notes:
            say(f"note: {path}: {note}")
    return image


def check_backbones(names: Iterable[str | None], weights: Path | None) -> None:
    """Refuse files of backbones that cannot be used before torch is imported, which takes seconds.

    Raises:
        InputError: a backbone's folder or file that cannot be one.
    """
    from splice_ff.vit.files import check_backbone, check_weights, weights_file

    if weights:
        check_weights(weights_file(weights))
    for name in filter(None, names):
        check_backbone(name, weights)


def find_device(name: str | None) -> torch.device:
    """The device asked for, or the default one.

    Raises:
        InputError: it cannot be used here.
    """
    import torch

    from splice_ff.utils.machine import available_devices, default_device

    try:
        device = torch.device(name) if name else default_device()
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ", ".join(available_devices())
        raise InputError(f"device '{name}' cannot be used here, but {there} ({first_line(error)[:80]})") from error
    return device


def find_backbone(
    name: str | None, weights: Path | None, recipe: Recipe | None = None, *, silent: bool = False
) -> ViTFeatures:
    """The backbone asked for, or the recipe's (`fast` by default), or its stand-in.

    A stand-in is announced even to those who asked for quiet, as it changes the result; `silent` is for all processes
    but one of several.
    """
    from splice_ff.per_pair.optimize import choose_backbone
    from splice_ff.per_pair.recipes import PRESETS

    backbone, notice = choose_backbone(recipe or PRESETS["fast"], name, weights)
    if notice and not silent:
        say(f"note: {notice}")
    return backbone
