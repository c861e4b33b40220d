"""`splice-ff export`: a one-shot model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Debug, Quiet, errors, expanded, say


def export(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, or hub id owner/name.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder to write to; its files of an export are replaced.", callback=expanded
        ),
    ] = Path("exported"),
    precision: Annotated[str, typer.Option(help="fp32, or fp16 for files of half the size.")] = "fp32",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a one-shot model as ONNX, for onnxruntime without torch and for browsers.

    Example: `splice-ff export everyday -o exported`, then `splice-ff transfer … --runtime onnx --model exported`
    """
    with errors(debug):
        from splice_ff.utils.extras import need

        need("onnx", "onnxscript", extra="onnx")
        from splice_ff.one_shot.pipeline import SpliceFF
        from splice_ff.onnx.export import export_model

        for file in export_model(SpliceFF.from_pretrained(model), output, precision=precision):
            if not quiet:
                say(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
