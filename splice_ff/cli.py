"""The `splice-ff` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from splice_ff import __version__
from splice_ff.commands import app as page
from splice_ff.commands import (
    apply,
    attention,
    batch,
    benchmark,
    demo,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    invert,
    match,
    optimize,
    pairs,
    pca,
    teach,
    train,
    transfer,
    video,
)
from splice_ff.utils.console import hush_libraries, mend_streams


class _Commands(TyperGroup):
    """The commands, with a hint for files whose names begin with a dash."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # By its attributes: typer has its own copy of click, or uses click's, by its version.
            if hasattr(error, "option_name") and any(map(_may_be_file, sys.argv[1:])):
                error.message += " A file whose name begins with a dash is written ./-NAME"  # type: ignore[attr-defined]
            raise


def _may_be_file(word: str) -> bool:
    return word[:1] == "-" and (Path(word).exists() or bool(Path(word.lower()).suffix))


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Paint one image with the look of another: its layout stays, its appearance changes.",
)
for command in (
    demo.demo,
    transfer.transfer,
    embed.embed,
    batch.batch,
    video.video,
    optimize.optimize,
    apply.apply,
    pairs.pairs,
    train.train,
    teach.teach,
    evaluate.evaluate,
    benchmark.benchmark,
    export.export,
    page.app,
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
    mend_streams()
    hush_libraries(quiet=False)
    app()
