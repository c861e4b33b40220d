"""`splice-ff teach`: the per-pair optimizer over many pairs, for the one-shot generator to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splice_ff.commands._options import (
    Debug,
    Device,
    Folder,
    PresetBackbone,
    Quiet,
    Seed,
    Weights,
    errors,
    find_backbone,
    find_device,
    say,
)
from splice_ff.errors import InputError
from splice_ff.utils.extras import need

if TYPE_CHECKING:
    from splice_ff.training.teacher import TeacherTask


def teach(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Folder of folders with structure.* and appearance.*; .csv or .jsonl of their paths; or .parquet from "
            "`splice-ff pairs`, with --data.",
            show_default=False,
        ),
    ],
    output: Folder = Path("teacher"),
    data: Annotated[str | None, typer.Option(help="Dataset that a .parquet of pairs counts its rows in.")] = None,
    split: Annotated[str, typer.Option(help="Its part, as given to `splice-ff pairs`.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    preset: Annotated[str, typer.Option(help="fast, or paper (as published: hours a pair; give a --size).")] = "fast",
    steps: Annotated[int | None, typer.Option(help="Number of steps instead of the preset's.")] = None,
    size: Annotated[int | None, typer.Option(help="Shorter side, in pixels, of the images kept.")] = None,
    backbone: PresetBackbone = None,
    weights: Weights = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint many pairs with the per-pair optimizer, for `splice-ff train` to learn from.

    Interrupted, the same command goes on where it was. On several GPUs:
    `accelerate launch $(which splice-ff) teach PAIRS -o DIR`; in several processes on CPUs: `torchrun` likewise.

    Example: `splice-ff teach pairs/ -o teacher`
    """
    with errors(debug):
        need("accelerate", "datasets", extra="train")
        from accelerate import PartialState

        from splice_ff.per_pair.optimize import make_recipe
        from splice_ff.training.teacher import FAILED, SETTINGS, open_folder
        from splice_ff.training.teacher import teach as paint_pairs
        from splice_ff.utils.files import check_place

        recipe = make_recipe(preset, steps=steps, size=size)
        if recipe.size is None:
            raise InputError(f"preset '{preset}' works at each image's own size; give the --size to keep")
        check_place(output / SETTINGS)
        given_device = find_device(device)
        state = PartialState(cpu=given_device.type == "cpu")  # else it sees one process where there is no GPU
        tasks, source = _tasks(pairs, data, split, seed)
        vit = find_backbone(backbone, weights, recipe, silent=not state.is_main_process)
        open_folder(output, source, recipe, vit, seed, state.is_main_process)
        state.wait_for_everyone()  # failed.jsonl must be gone before the first line of the new one
        is_spread = device is None and state.num_processes > 1
        try:
            report = paint_pairs(
                tasks[:limit],
                vit,
                recipe,
                output,
                seed=seed,
                device=state.device if is_spread else given_device,
                rank=state.process_index,
                world_size=state.num_processes,
                quiet=quiet or not state.is_main_process,
            )
        except KeyboardInterrupt:
            say(f"interrupted; the finished pairs are in {output}, and the same command goes on from there")
            raise
        finally:
            state.destroy_process_group()
        share = f"process {state.process_index + 1} of {state.num_processes}: " if state.num_processes > 1 else ""
        if report.failed and not report.painted + report.found:
            raise InputError(f"{share}no pair could be painted; {output / FAILED} says why")
        if report.failed:
            say(f"note: {share}pairs left out: {report.failed}; {output / FAILED} says why")
        if not quiet:
            say(f"{share}{output}: pairs painted: {report.painted}, there already: {report.found}")


def _tasks(pairs: Path, data: str | None, split: str, seed: int) -> tuple[Sequence[TeacherTask], dict[str, str]]:
    """The pairs to paint, and what their names refer to."""
    from splice_ff.training.teacher import tasks_of_dataset, tasks_of_files

    if pairs.suffix == ".parquet":
        if data is None:
            raise InputError(f"{pairs}: name the dataset that its pairs were found in with --data")
        from splice_ff.data.image_dataset import open_dataset
        from splice_ff.data.mining import read_mined_pairs

        mined, dataset = read_mined_pairs(pairs), open_dataset(data, split)
        mined.check(len(dataset), split)
        place = Path(data).expanduser()
        source = {"data": str(place.resolve()) if place.exists() else data, "split": split}
        return tasks_of_dataset(mined, dataset, seed), source
    if data is not None:
        raise InputError("--data goes with a .parquet of pairs")
    from splice_ff.data.pair_list import read_pairs

    return tasks_of_files(read_pairs(pairs)), {"pairs": str(pairs.resolve())}
