"""`splice-ff teach`: the per-pair optimizer over many pairs, for the one-shot generator to learn from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._one_shot import load_model
from splice_ff.commands._options import (
    Debug,
    Device,
    Folder,
    PresetBackbone,
    Quiet,
    Seed,
    Weights,
    check_backbones,
    errors,
    expanded,
    find_backbone,
    find_device,
    say,
)
from splice_ff.errors import InputError
from splice_ff.utils.extras import need


def teach(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Folder of folders with structure.* and appearance.*; .csv or .jsonl of their paths; or .parquet from "
            "`splice-ff pairs`, with --data.",
            show_default=False,
            callback=expanded,
        ),
    ],
    output: Folder = Path("teacher"),
    data: Annotated[str | None, typer.Option(help="Dataset that a .parquet of pairs counts its rows in.")] = None,
    split: Annotated[str, typer.Option(help="Its part, as given to `splice-ff pairs`.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="fast, the default, or paper (as published: hours a pair; give a --size).", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Instead of a preset: refine what this one-shot model paints (bundled, folder, or hub id)."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Number of steps; by default 600 of fast, 10000 of paper, 100 of a --model."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Shorter side, in pixels, of the images kept; by default 224, none of paper."),
    ] = None,
    backbone: PresetBackbone = None,
    weights: Weights = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint many pairs with the per-pair optimizer, for `splice-ff train` to learn from.

    Interrupted, the same command goes on from where it stopped. On several GPUs:
    `accelerate launch -m splice_ff teach PAIRS -o DIR`; in several processes on CPUs: `torchrun` likewise.

    Example: `splice-ff teach pairs/ -o teacher`
    """
    with errors(debug):
        need("accelerate", "datasets", extra="train")
        from splice_ff.data.pair_list import read_pairs
        from splice_ff.per_pair.recipes import REFINE, changed, make_recipe

        if model and (preset or backbone):
            raise InputError("--model refines with its own backbone; leave out --preset and --backbone")
        start = REFINE if model else make_recipe(preset or "fast")
        recipe = changed(start, steps=steps, size=size)
        if recipe.size is None:
            raise InputError(f"preset '{preset}' works at each image's own size; give the --size to keep")
        if pairs.suffix != ".parquet" or not pairs.exists():
            read_pairs(pairs)
        check_backbones([backbone], weights)

        from splice_ff.training import teacher

        place = find_device(device) if device else None
        rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        one_shot = load_model(model, None, weights, device) if model else None
        vit = one_shot.backbone if one_shot else find_backbone(backbone, weights, recipe, silent=rank > 0)
        try:
            report = teacher.teach(
                pairs,
                output,
                vit,
                recipe,
                model=one_shot,
                data=data,
                split=split,
                limit=limit,
                seed=seed,
                device=place,
                quiet=quiet,
            )
        except KeyboardInterrupt:
            say(f"interrupted; the finished pairs are in {output}, and the same command goes on from there")
            raise
        share = f"process {rank + 1} of {processes}: " if processes > 1 else ""
        if report.failed and not report.painted + report.skipped:
            raise InputError(f"{share}no pair could be painted; {output / teacher.FAILED} says why")
        if report.failed:
            say(f"note: {share}pairs left out: {report.failed}; {output / teacher.FAILED} says why")
        if not quiet:
            say(f"{share}{output}: {report.painted} pairs painted, {report.skipped} painted before")
