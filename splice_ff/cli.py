"""The `splice-ff` command."""

from __future__ import annotations

import warnings

import typer

from splice_ff.commands import (
    batch,
    benchmark,
    doctor,
    evaluate,
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
    match.attention,
    match.match,
    match.explain,
    doctor.doctor,
):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # the reader cannot act on them
    app()
