"""The teacher: pairs that the per-pair optimizer paints, for the amortized generator to learn from (distillation).

It starts from random weights, or refines what a one-shot model paints.

`teach` writes one parquet file a pair, which is whole or absent: a run killed at any time loses the pair it was at.
`splice_ff.data.teacher_pairs.TeacherPairs` reads them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from splice_ff.data.decoding import load_row
from splice_ff.data.mined_pairs import MinedPairs, read_mined_pairs
from splice_ff.data.pair_list import PairFiles, read_pairs
from splice_ff.data.sources import open_dataset
from splice_ff.data.teacher_pairs import FILES, IMAGES, write_teacher_pair
from splice_ff.errors import DivergedError, InputError
from splice_ff.one_shot.model import OneShotModel
from splice_ff.one_shot.refine import refiner, refining_size
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import Recipe
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import check_place, reason
from splice_ff.utils.machine import default_device
from splice_ff.utils.run_folder import claim_folder, lock_folder
from splice_ff.vit.features import ViTFeatures

if TYPE_CHECKING:
    from datasets import Dataset

SETTINGS, FAILED = "teach.json", "failed.jsonl"


@dataclass(frozen=True)
class TeacherTask:
    """A pair to paint: its name, unique and usable as a file name, and how to get its rows for `load_row`."""

    name: str
    structure: Callable[[], Mapping[str, Any]]
    appearance: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class TeachReport:
    """What one process did."""

    painted: int
    skipped: int
    """Pairs that the folder held before."""
    failed: int


def teach(
    pairs: Path,
    output: Path,
    backbone: ViTFeatures,
    recipe: Recipe,
    *,
    model: OneShotModel | None = None,
    data: str | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> TeachReport:
    """Paint many pairs with the per-pair optimizer, but for those that the output folder holds.

    Under `accelerate launch` or `torchrun`, processes share the pairs; each returns what it did itself. A pair that
    cannot be read or diverges is noted in `output/failed.jsonl` (`name`, `error`) and the rest goes on.

    Args:
        pairs: a folder of pair folders, a .csv or a .jsonl (see `splice_ff.data.pair_list.read_pairs`), or a .parquet
            from `splice-ff pairs`.
        output: folder of `pair-<name>.parquet` files (see `splice_ff.data.teacher_pairs.write_teacher_pair`).
        backbone: the frozen ViT, used for all of them.
        recipe: of the optimizer; with a `size`, to which the shorter sides of both images are resized. Of images
            longer than 3:1 the middle is used.
        model: whose answers are refined, by `recipe.steps` steps of `splice_ff.one_shot.refine` at the size that it
            refines at; the images kept are still of `recipe.size`. Without one, every pair starts from random weights.
        data, split: the dataset that a .parquet of pairs counts its rows in, as for `open_dataset`.
        limit: only the first so many pairs.
        seed: of every pair's run.
        device: where to compute; chosen by accelerate if None.
        quiet: no progress bar, no notes.

    Raises:
        InputError: the recipe has no size, the pairs cannot be read, or the folder takes no file, holds images made
            otherwise or is being written to by another run.
    """
    if recipe.size is None:
        raise InputError("the teacher keeps images of one size; give one (--size)")
    check_place(output / SETTINGS)
    tasks, source = _tasks(pairs, data, split, seed, quiet)
    # Without a GPU accelerate sees a single process, unless told so.
    state = PartialState(cpu=torch.device(device or default_device()).type == "cpu")
    with lock_folder(output) if state.is_main_process else nullcontext():
        _claim(output, source, recipe, backbone, seed, model)
        if state.is_main_process:
            (output / FAILED).unlink(missing_ok=True)  # what failed is tried again
        state.wait_for_everyone()
        try:
            share = tasks[:limit][state.process_index :: state.num_processes]
            return paint_pairs(
                share,
                backbone,
                recipe,
                output,
                model=model,
                seed=seed,
                device=state.device if device is None else device,
                quiet=quiet or not state.is_main_process,
            )
        finally:
            state.destroy_process_group()


def paint_pairs(
    tasks: Sequence[TeacherTask],
    backbone: ViTFeatures,
    recipe: Recipe,
    folder: Path,
    *,
    model: OneShotModel | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> TeachReport:
    """Paint pairs into a folder, in this process; see `teach`."""
    assert recipe.size is not None
    if model is not None:
        model.to(device)  # each process its own

    def make_run(structure: Tensor, appearance: Tensor) -> PairOptimizer:
        if model is not None:
            return refiner(model, structure, appearance, steps=recipe.steps, seed=seed)
        return PairOptimizer(structure, appearance, backbone, recipe, seed=seed, device=device)

    todo = [task for task in tasks if not (folder / FILES.format(task.name)).exists()]
    skipped, failed, totals = len(tasks) - len(todo), 0, list[float]()
    with progress_bar(len(tasks), "pair", quiet, skipped) as bar:
        for task in todo:
            try:
                structure, appearance = (load_row(row(), recipe.size) for row in (task.structure, task.appearance))
                total = _paint(task.name, structure, appearance, make_run, folder)
            except (InputError, DivergedError) as error:
                failed += 1
                _note_failure(folder, task.name, error)
                if not quiet:
                    bar.write(f"note: pair '{task.name}' left out: {error}", file=sys.stderr)
            else:
                totals.append(total)
                bar.set_postfix_str(f"mean total loss {np.mean(totals):.4f}", refresh=False)
            bar.update()
    return TeachReport(len(totals), skipped, failed)


def tasks_of_files(pairs: Iterable[PairFiles]) -> list[TeacherTask]:
    """Tasks of a list of pairs, in its order."""

    def row(path: Path) -> Callable[[], Mapping[str, Any]]:
        return lambda: {"image": {"path": str(path), "bytes": None}}

    return [TeacherTask(pair.name, row(pair.structure), row(pair.appearance)) for pair in pairs]


def tasks_of_dataset(mined: MinedPairs, dataset: Dataset, seed: int = 0) -> list[TeacherTask]:
    """Tasks of mined pairs, named by their rows, `<structure>-<appearance>`.

    Shuffled, so that the first N are not the neighbors of a few images; alike for the same pairs and seed.

    Raises:
        InputError: the pairs are of another dataset or split.
    """
    mined.check(len(dataset))
    pairs = list(zip(mined.structure.tolist(), mined.appearance.tolist(), strict=True))
    order = np.random.default_rng(seed).permutation(len(pairs))
    row = dataset.__getitem__
    return [TeacherTask(f"{s}-{a}", partial(row, s), partial(row, a)) for s, a in (pairs[i] for i in order)]


def _tasks(
    pairs: Path, data: str | None, split: str, seed: int, quiet: bool
) -> tuple[list[TeacherTask], dict[str, str]]:
    """The pairs to paint, and what their names refer to."""
    if pairs.suffix == ".parquet":
        if data is None:
            raise InputError(f"{pairs}: name the dataset that its pairs were mined from with --data")
        mined, dataset = read_mined_pairs(pairs), open_dataset(data, split, quiet=quiet)
        mined.check(len(dataset), split)
        place = Path(data).expanduser()
        source = {"data": str(place.resolve()) if place.exists() else data, "split": split}
        return tasks_of_dataset(mined, dataset, seed), source
    if data is not None:
        raise InputError("--data goes with a .parquet of pairs")
    return tasks_of_files(read_pairs(pairs)), {"pairs": str(pairs.resolve())}


def _claim(
    folder: Path,
    source: Mapping[str, str],
    recipe: Recipe,
    backbone: ViTFeatures,
    seed: int,
    model: OneShotModel | None,
) -> None:
    """Note in teach.json what the folder's images are made of and how; refuse to mix them with others."""
    how = {k: v for k, v in asdict(recipe).items() if k != "backbone"}
    how |= {"backbone": backbone.name, "backbone_sha256": backbone.fingerprint, "seed": seed}
    how |= {
        **(model.identity if model else {"model_sha256": None}),
        "working_size": refining_size(model) if model else recipe.size,
    }
    claim_folder(folder / SETTINGS, json.loads(json.dumps({**source, **how})), holds="a teacher's pairs")


def _paint(
    name: str,
    structure: Tensor,
    appearance: Tensor,
    make_run: Callable[[Tensor, Tensor], PairOptimizer],
    folder: Path,
) -> float:
    """Paint and write a pair of images (3, H, W) uint8; its total loss."""
    start = time.perf_counter()
    run = make_run(*(image[None].float() / 255 for image in (structure, appearance)))
    run.run()
    result = run.result()
    output = (result.image[0].clamp(0, 1) * 255).round().to(torch.uint8)
    facts = {
        "name": name,
        "losses": result.losses,
        "seconds": time.perf_counter() - start,
        "steps": run.step_count,
        "settings": json.dumps(result.settings),
    }
    kept = dict(zip(IMAGES, (structure, appearance, output), strict=True))
    write_teacher_pair(folder / FILES.format(name), kept, facts)
    return float(result.losses["total"])


def _note_failure(folder: Path, name: str, error: Exception) -> None:
    line = json.dumps({"name": name, "error": str(error)}) + "\n"
    try:
        with open(folder / FAILED, "a", encoding="utf-8") as file:  # short lines of several processes do not mix
            file.write(line)
    except OSError as problem:
        raise InputError(f"{folder / FAILED}: cannot be written ({reason(problem)})") from problem
