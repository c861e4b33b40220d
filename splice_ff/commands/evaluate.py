"""`splice-ff evaluate`: methods over pairs, with figures, tables and images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._one_shot import DEFAULT_MODEL
from splice_ff.commands._options import (
    Backbone,
    Debug,
    Device,
    Folder,
    Quiet,
    Weights,
    check_backbones,
    errors,
    expanded,
    find_device,
    say,
)
from splice_ff.errors import InputError
from splice_ff.utils.extras import need


def evaluate(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Folder of pair folders, or .csv or .jsonl of structure, appearance, name, domain.", callback=expanded
        ),
    ],
    output: Folder = Path("evaluation"),
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="copy, color, one-shot[@SIZE][+refine:STEPS], optimize-fast[:STEPS] or optimize-paper[:STEPS]; "
            "repeat for several. SIZE: of the shorter side, in pixels. By default copy and color."
        ),
    ] = None,
    results: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of images FOLDER/PAIR.* or FOLDER/PAIR/NAME.*; repeat for several."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method that the others are compared with. By default the first results.")
    ] = None,
    baseline_pairs: Annotated[
        bool, typer.Option("--baseline-pairs", help="Only pairs of which the baseline has an image.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    model: Annotated[
        str, typer.Option(help="Of the one-shot methods: bundled, a folder, or a hub id.")
    ] = DEFAULT_MODEL,
    backbone: Backbone = None,
    weights: Weights = None,
    also_backbone: Annotated[
        list[str] | None, typer.Option(help="Also measure self-sim and CLS cosine with this one; repeat for several.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Network that judges how near images are to their inputs: efficientnet_lite1, efficientnet_lite2, "
            "open_nsfw, or a timm model; not one that taught the backbone. Repeat for several."
        ),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure methods on pairs: report.html with images, summary.md, summary.json, results.parquet.

    Stopped and started again, it goes on. On several GPUs: `accelerate launch --multi_gpu -m splice_ff evaluate`
    with the same arguments; in several processes on CPUs: `torchrun --nproc_per_node 2 -m splice_ff evaluate`.

    Example: `splice-ff evaluate pairs -o evaluation --method copy --method one-shot --results theirs=results/`
    """  # fmt: skip
    with errors(debug):
        need("accelerate", "matplotlib", "pyarrow", extra="eval")
        from splice_ff.data.pair_list import read_pairs

        read_pairs(pairs)
        check_backbones([backbone, *(also_backbone or ())], weights)

        from splice_ff.evaluation import run

        summary = run.evaluate(
            pairs,
            output,
            methods=method or run.DEFAULT_METHODS,
            results=_by_name(results or []),
            baseline=baseline,
            baseline_pairs=baseline_pairs,
            limit=limit,
            model=model,
            backbone=backbone,
            weights=weights,
            also_backbones=also_backbone or (),
            judges=judge or (),
            device=find_device(device),
            quiet=quiet,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            on_note=lambda note: say(f"note: {note}"),
        )
        if summary and not quiet:
            say(f"{output / 'report.html'}: {summary['pairs']} pairs, {len(summary['methods'])} methods")


def _by_name(results: list[str]) -> dict[str, str]:
    """Folders of results by name.

    Raises:
        InputError: one is not of the form NAME=FOLDER, or a name is given twice.
    """
    folders: dict[str, str] = {}
    for text in results:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise InputError(f"results '{text}' are not NAME=FOLDER")
        if name in folders:
            raise InputError(f"method '{name}' is given twice")
        folders[name] = folder
    return folders
