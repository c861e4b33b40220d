"""`splice-ff pairs`: nearest neighbors of a dataset, to train on."""

from __future__ import annotations

from glob import glob
from os.path import expanduser
from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import (
    REPLACED,
    Backbone,
    Debug,
    Device,
    Quiet,
    Weights,
    check_backbones,
    errors,
    expanded,
    find_backbone,
    find_device,
    say,
)
from splice_ff.utils.extras import need


def pairs(
    data: Annotated[str, typer.Argument(help="Folder of images, .parquet or .tar files, or a dataset on the hub.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"File to write (.parquet). {REPLACED}", callback=expanded)
    ] = Path("pairs.parquet"),
    neighbors: Annotated[int, typer.Option(min=1, help="Neighbors of each image.")] = 8,
    split: Annotated[str, typer.Option(help="Part of the dataset; train on the same one: 'train[:95%]'.")] = "train",
    label: Annotated[list[str] | None, typer.Option(help="Only images with this label; may be repeated.")] = None,
    by: Annotated[
        str,
        typer.Option(help="appearance: neighbors look alike. structure: they are laid out alike, and look different."),
    ] = "appearance",
    across_labels: Annotated[bool, typer.Option("--across-labels", help="Only neighbors with another label.")] = False,
    within_labels: Annotated[bool, typer.Option("--within-labels", help="Only neighbors with the same label.")] = False,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Annotated[int, typer.Option(min=16, max=2048, help="Pixels of the square that the ViT sees.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the nearest neighbors of every image, for training on pairs that match.

    Interrupted, the same command goes on from where it stopped.

    Example: `splice-ff pairs photos/ -o pairs.parquet`
    """
    with errors(debug):
        need("datasets", extra="train")
        from splice_ff.utils.files import check_not_input

        check_not_input(output, map(Path, [data, *glob(expanduser(data))]))
        check_backbones([backbone], weights)

        from splice_ff.data.mining import check_choice, check_output, mine_pairs

        check_output(output)  # before anything is downloaded
        check_choice(by, across_labels, within_labels)
        report = mine_pairs(
            data,
            find_backbone(backbone, weights),
            output,
            split=split,
            neighbors=neighbors,
            labels=label,
            by=by,
            across_labels=across_labels,
            within_labels=within_labels,
            size=size,
            batch_size=batch_size,
            device=find_device(device),
            quiet=quiet,
        )
        if report.unreadable:
            say(f"note: {report.unreadable} images could not be read and were left out")
        if not quiet:
            say(f"{output}: {report.pairs} pairs, for {report.paired} of {report.images} images")
