"""`splice-ff benchmark`: how fast, how much memory, and how close to the machine's limit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Debug, Device, Quiet, check_backbones, errors, expanded, find_device, say


def benchmark(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            help="step, one-shot, usage, training, memory, scaling; all of them by default.", show_default=False
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="ViT of step, one-shot, usage and memory; repeat for several. By default DINO's, here with random "
            "weights."
        ),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(help="Side of their images in pixels; repeat for several. By default some of 256 to 1024."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Images a shot; repeat for several. By default 1, and 4 or on a GPU 8.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or bf16; repeat for both. By default what the device can do.")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Time step, one-shot and training compiled as well: minutes more.")
    ] = False,
    repeats: Annotated[
        int | None, typer.Option(help="Rounds, of which the medians are shown. By default 3, on a GPU 10.")
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help="Size of the amortized generator: tiny (the default), compact, small (on a GPU the default), base, or "
            "one of them with -grid."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="One-shot model to time, instead of a generator with random weights.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of training settings, instead of random images.", callback=expanded)
    ] = None,
    set: Annotated[list[str] | None, typer.Option(help="section.key=value in those; repeat for several.")] = None,
    processes: Annotated[
        list[int] | None,
        typer.Option(
            help="How many train side by side, in scaling; repeat for several. By default 1 and 2, on GPUs 1, 2, 4, …"
        ),
    ] = None,
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

    All parts take under five minutes on two cores and three on a GPU, if nothing else runs there. A part by itself
    takes larger ViTs and images.

    Example: `splice-ff benchmark step --backbone dino_vits8 --json speed.json`
    """  # fmt: skip
    with errors(debug):
        from splice_ff.utils.config_file import find_config
        from splice_ff.utils.files import check_not_input

        if config:
            config = find_config(config)
        if output:
            check_not_input(output, [config])
        check_backbones(backbone or (), None)

        from splice_ff.benchmark import run

        options = run.Options(
            backbone or (), size or (), batch or (), precision or (), processes or (), repeats, generator, model,
            config, set or (), compile,
        )  # fmt: skip
        run.benchmark(
            parts or (),
            options,
            device=find_device(device),
            output=output,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            on_heading=lambda report: typer.echo(report.heading() + "\n"),
            before_part=lambda name: None if quiet else say(f"measuring: {name}"),
            on_part=lambda part: typer.echo(part.markdown() + "\n"),
        )
