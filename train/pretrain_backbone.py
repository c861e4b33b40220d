r"""Train a backbone of your own: distillation from a teacher, then DINO. On one device, or under `accelerate launch`.

    python train/pretrain_backbone.py --config train/configs/backbone/gpu.yaml images.source=photos/ output=runs/mine

Stop with ctrl-C or SIGTERM: the run is saved, and the same command goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Debug, Quiet, errors, say


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value")] = None,
    config: Annotated[Path, typer.Option(help="YAML file.")] = Path("train/configs/backbone/gpu.yaml"),
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take a ViT through the stages of a config; docs/pretraining.md explains them."""
    from splice_ff.errors import DivergedError
    from splice_ff.pretraining.config import PretrainingConfig
    from splice_ff.pretraining.trainer import pretrain
    from splice_ff.utils.config_file import read_settings

    with errors(debug):
        try:
            was_interrupted = pretrain(read_settings(PretrainingConfig, config, overrides or ()), quiet)
        except DivergedError as error:
            say(f"error: {error}")
            raise typer.Exit(1) from error
        if was_interrupted:
            raise typer.Exit(130)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
