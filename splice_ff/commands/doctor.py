"""`splice-ff doctor`."""

from __future__ import annotations

import typer

from splice_ff.commands._options import Debug, errors


def doctor(debug: Debug = False) -> None:
    """Show versions, devices, number formats, backbones and checkpoints at hand."""
    with errors(debug):
        from splice_ff.utils.doctor import report

        for line in report():
            typer.echo(line)
