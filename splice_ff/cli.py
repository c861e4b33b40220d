"""The `splice-ff` command."""

from __future__ import annotations

import warnings

import typer

from splice_ff.commands import (
    batch,
    benchmark,
    data,
    evaluation,
    features,
    inversion,
    pair,
    pca,
    report,
    teach,
    train,
    transfer,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Paint one picture with the look of another: its layout stays, its appearance changes.",
)
for command in (
    transfer.transfer,
    transfer.embed,
    batch.batch,
    pair.optimize,
    pair.apply,
    data.pairs,
    train.train,
    teach.teach,
    evaluation.evaluate,
    benchmark.benchmark,
    pca.pca,
    inversion.invert,
    features.attention,
    features.match,
    features.explain,
    report.doctor,
):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # the reader cannot act on them
    app()
