"""`splice-ff pairs`: nearest neighbors of a dataset, to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Backbone, Debug, Device, Quiet, Weights, errors, find_backbone, find_device, say
from splice_ff.errors import InputError
from splice_ff.utils.extras import need


def pairs(
    data: Annotated[str, typer.Argument(help="Folder of images, .parquet or .tar files, or a dataset on the hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (.parquet).")] = Path("pairs.parquet"),
    neighbors: Annotated[int, typer.Option(min=1, help="Neighbors of each image.")] = 8,
    split: Annotated[str, typer.Option(help="Part of the dataset; train on the same one: 'train[:95%]'.")] = "train",
    label: Annotated[list[str] | None, typer.Option(help="Only images with this label; may be repeated.")] = None,
    across_labels: Annotated[bool, typer.Option("--across-labels", help="Only neighbors with another label.")] = False,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Annotated[int, typer.Option(min=16, help="Pixels of the square that the ViT sees.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the nearest neighbors of every image, for training on pairs that match.

    Interrupted, the same command goes on where it was.

    Example: `splice-ff pairs photos/ -o pairs.parquet`
    """
    with errors(debug):
        need("datasets", extra="train")
        from splice_ff.data.image_dataset import open_dataset
        from splice_ff.data.mining import mine_pairs
        from splice_ff.utils.files import check_place

        if output.suffix != ".parquet":
            raise InputError(f"{output}: pairs are written as .parquet; choose such a name")
        check_place(output)
        place = find_device(device)
        dataset = open_dataset(data, split)
        vit = find_backbone(backbone, weights)
        report = mine_pairs(
            dataset,
            vit,
            output,
            about={"data": data, "split": split},
            neighbors=neighbors,
            labels=label,
            across_labels=across_labels,
            size=size,
            batch_size=batch_size,
            device=place,
            quiet=quiet,
        )
        if report.unreadable:
            say(f"note: {report.unreadable} images could not be read and were left out")
        if not quiet:
            say(f"{output}: {report.pairs} pairs, for {report.pictures} of {len(dataset)} images")
