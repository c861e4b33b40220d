r"""Train the amortized generator under `accelerate launch`: one GPU, many GPUs, many machines.

    accelerate launch --config_file train/configs/accelerate/gpus.yaml \
        train/amortized.py --config train/configs/small.yaml optimizer.batch_size=16 output=runs/other
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands.train import train


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value")] = None,
    config: Annotated[Path, typer.Option(help="YAML file.")] = Path("train/configs/small.yaml"),
    debug: bool = False,
) -> None:
    """The same as `splice-ff train CONFIG`, for `accelerate launch`."""
    train(str(config), overrides, debug=debug)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
