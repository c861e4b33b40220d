"""The `splice-ff` command."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from splice_ff import __version__
from splice_ff.commands import (
    attention,
    batch,
    benchmark,
    demo,
    doctor,
    evaluate,
    explain,
    invert,
    match,
    optimize,
    pairs,
    pca,
    teach,
    train,
    transfer,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Paint one image with the look of another: its layout stays, its appearance changes.",
)
for command in (
    demo.demo,
    transfer.transfer,
    transfer.embed,
    batch.batch,
    optimize.optimize,
    optimize.apply,
    pairs.pairs,
    train.train,
    teach.teach,
    evaluate.evaluate,
    benchmark.benchmark,
    pca.pca,
    invert.invert,
    attention.attention,
    match.match,
    explain.explain,
    doctor.doctor,
):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"splice-ff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `splice-ff` itself."""


def main() -> None:
    """Entry point of the console script."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # the reader cannot act on them
    app()
