"""`splice-ff train`: the amortized generator, on many pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Debug, Quiet, errors, say
from splice_ff.utils.extras import need


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see train/configs/.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values to replace, as section.key=value: optimizer.batch_size=32.", show_default=False),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the one-shot generator on your own images.

    On several GPUs or machines: `accelerate launch -m splice_ff train CONFIG`, with the same overrides.
    Stop with ctrl-C or SIGTERM: the run is saved, and the same command goes on.

    Example: `splice-ff train train/configs/small.yaml data.source=photos/ output=runs/photos`
    """
    with errors(debug):
        need("accelerate", "datasets", "tensorboard", extra="train")
        from splice_ff.errors import DivergedError
        from splice_ff.training.config import load_config
        from splice_ff.training.trainer import Trainer

        trainer = Trainer(load_config(config, overrides or ()), quiet=quiet)
        try:
            trainer.run()
        except DivergedError as error:
            say(f"error: {error}")
            raise typer.Exit(1) from error
        if trainer.was_interrupted:
            raise typer.Exit(130)
