"""`splice-ff benchmark`: how fast, how much memory, and how close to the machine's limit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Debug, Device, Quiet, check_backbones, errors, expanded, find_device


def benchmark(
    parts: Annotated[
        list[str] | None, typer.Argument(help="step, usage, memory; all of them by default.", show_default=False)
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="ViT of step and memory, with random weights; repeat for several. By default DINO's."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images of step and usage, in pixels. By default 256, and usage at 3840x2160 as well."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds, of which the medians are shown.")] = 3,
    model: Annotated[str, typer.Option(help="One-shot model of usage.")] = "everyday",
    output: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the figures here; an existing file is replaced.", callback=expanded),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure speed and memory, beside a naive step and beside the floor.

    The floor is what the operations (matrix products, convolutions, attention) would take at the rate of a large matrix
    product on the same device in the same precision; floor/time says how close to it a figure is.

    On two quiet cores step takes a minute and a half, usage a minute, memory half a minute.

    Example: `splice-ff benchmark step --backbone dino_vits8 --json speed.json`
    """
    with errors(debug):
        check_backbones(backbone or (), None)

        from splice_ff.benchmark import benchmark as measure

        measure(
            parts or (), backbones=backbone or (), size=size, repeats=repeats, model=model, device=find_device(device),
            output=output, quiet=quiet, on_table=typer.echo,
        )  # fmt: skip
