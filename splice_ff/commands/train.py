"""`splice-ff train`: the amortized generator, on many pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from splice_ff.commands._options import Debug, Quiet, errors, say
from splice_ff.utils.extras import need

if TYPE_CHECKING:
    from splice_ff.training.config import TrainingConfig


def train(
    config: Annotated[
        str, typer.Argument(help="YAML file, or the name of one that comes along: dino-24gb, cpu.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values to replace, as section.key=value: optimizer.batch_size=32.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run would take: steps, images, memory, time.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the one-shot generator on your own images.

    On several GPUs or machines: `accelerate launch -m splice_ff train CONFIG`, with the same overrides.
    Stop with ctrl-C or SIGTERM: the run is saved, and the same command goes on.

    Example: `splice-ff train dino-24gb data.source=photos/ output=runs/photos`
    """
    with errors(debug):
        from splice_ff.utils.config_file import find_config

        file = find_config(config)
        need("accelerate", "datasets", "tensorboard", extra="train")
        from splice_ff.errors import DivergedError
        from splice_ff.training.config import load_config

        settings = load_config(file, overrides or ())
        if dry_run:
            _print_estimate(settings)
            return
        from splice_ff.training.trainer import Trainer

        trainer = Trainer(settings, quiet=quiet)
        try:
            trainer.run()
        except DivergedError as error:
            say(f"error: {error}")
            raise typer.Exit(1) from error
        if trainer.was_interrupted:
            raise typer.Exit(130)


def _print_estimate(settings: TrainingConfig) -> None:
    import torch

    from splice_ff.training.dry_run import dry_run
    from splice_ff.utils.machine import default_device, describe, matmul_rate

    device = default_device()
    rate = matmul_rate(device, torch.bfloat16 if settings.run.precision == "bf16" else torch.float32)
    typer.echo("\n".join([*dry_run(settings).lines(rate), f"device               {describe(device)}"]))
    if {"realism", "kernel"} & settings.loss.terms.keys():
        typer.echo("not counted          the network of the terms realism and kernel")
