"""`splice-ff apply`: a generator that `optimize` trained, on another image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import splice_ff
from splice_ff.commands._options import (
    Debug,
    Device,
    Output,
    Quiet,
    errors,
    expanded,
    find_device,
    load,
    say,
)
from splice_ff.errors import InputError


def apply(
    generator: Annotated[
        Path, typer.Argument(help="File written by `optimize --save-generator`.", show_default=False, callback=expanded)
    ],
    image: Annotated[Path, typer.Argument(help="Image to repaint.", show_default=False, callback=expanded)],
    output: Output = Path("out.png"),
    size: Annotated[
        int | None,
        typer.Option(help="Shorter side, in pixels, at which to work; by default that of the generator's training."),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a generator that `optimize` trained on another image: well under a second.

    It has learned one look on one layout; expect good results on images like its own.
    """
    with errors(debug):
        from splice_ff.images import check_readable, check_writable
        from splice_ff.utils.files import check_not_input

        if not generator.is_file():
            raise InputError(f"{generator}: no such file; name one written by `optimize --save-generator`")
        check_writable(output, check_readable(image))
        check_not_input(output, [generator, image])

        from splice_ff.images import save_image
        from splice_ff.per_pair.generator_file import load_generator
        from splice_ff.per_pair.optimize import apply_generator

        net, settings = load_generator(generator)
        loaded = load(image, quiet)
        painted = apply_generator(net.to(find_device(device)), loaded.rgb, size or _trained_size(settings))
        facts = settings | {"splice_ff": splice_ff.__version__, "applied_to": image.name}
        save_image(output, painted, alpha=loaded.alpha, settings=facts)
        if not quiet:
            say(str(output))


def _trained_size(settings: dict[str, str]) -> int | None:
    return None if settings["size"] == "None" else int(settings["size"])
