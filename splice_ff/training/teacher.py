"""Images that the per-pair optimizer paints, for the amortized generator to learn from (distillation).

`teach` writes one parquet file a pair, which is whole or absent: a run killed at any time loses the pair it was at.
`datasets.load_dataset("parquet", data_files="DIR/*.parquet")` reads them as one table, `TeacherPairs` as squares to
train on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from splice_ff.data.image_dataset import load_row, side_for_crops, square_crop
from splice_ff.data.mining import MinedPairs
from splice_ff.data.pair_list import PairFiles
from splice_ff.errors import DivergedError, InputError
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import Recipe
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import atomic_write
from splice_ff.utils.seeding import seeded_generator
from splice_ff.vit.features import ViTFeatures

if TYPE_CHECKING:
    from datasets import Dataset, Features

PICTURES = ["structure", "appearance", "output"]
FILES = "pair-{}.parquet"
"""Prefixed, as `datasets` passes over files whose names begin with a dot or two underscores."""
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
    found: int
    """Pairs that were there already."""
    failed: int


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
    structure = np.repeat(np.arange(mined.rows), np.diff(mined.starts)).tolist()
    pairs = list(zip(structure, mined.appearance.tolist(), strict=True))
    order = np.random.default_rng(seed).permutation(len(pairs))
    row = dataset.__getitem__
    return [TeacherTask(f"{s}-{a}", partial(row, s), partial(row, a)) for s, a in (pairs[i] for i in order)]


def open_folder(
    folder: Path, source: Mapping[str, str], recipe: Recipe, backbone: ViTFeatures, seed: int, is_main: bool = True
) -> None:
    """Note in teach.json what the folder's images are made of and how; refuse to mix them with others.

    failed.jsonl begins anew, as pairs that failed are tried again.

    Args:
        folder: where `teach` will write.
        source: what the pairs' names refer to, such as the path of their list.
        recipe, backbone, seed: how they will be painted.
        is_main: only this process of several writes.

    Raises:
        InputError: the folder holds images of another source or made otherwise, or takes no file.
    """
    recipe_values = {k: v for k, v in asdict(recipe).items() if k != "backbone"}
    how = {"backbone": backbone.name, "backbone_sha256": backbone.fingerprint, "seed": seed}
    settings = {**source, **recipe_values, **how}
    path = folder / SETTINGS
    try:
        there = json.loads(path.read_text()) if path.exists() else settings
        changed = [k for k in {**there, **settings} if there.get(k) != settings.get(k)]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged; choose another folder") from error
    if changed:
        differences = ", ".join(f"{k} {there.get(k)} there, {settings.get(k)} now" for k in changed)
        raise InputError(f"{folder} holds images made otherwise ({differences}); choose another folder")
    if is_main:
        try:
            atomic_write(path, lambda file: file.write_text(json.dumps(settings, indent=1)))
            (folder / FAILED).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def teach(
    tasks: Sequence[TeacherTask],
    backbone: ViTFeatures,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    quiet: bool = False,
) -> TeachReport:
    """Paint this process's share of the pairs with the per-pair optimizer, but for those that `folder` holds.

    Each pair makes `folder/pair-<name>.parquet` with one row: `name`; `structure`, `appearance` and `output` at working
    size (PNG, `datasets.Image`); `losses` of the whole image (`total`, `structure`, `appearance`, `identity`);
    `seconds` and `steps` taken; `settings`, JSON. A pair that cannot be read or diverges is noted in
    `folder/failed.jsonl` (`name`, `error`) and the rest goes on.

    Args:
        tasks: all pairs, the same in every process.
        backbone: the frozen ViT, used for all of them.
        recipe: of the optimizer; with a `size`, to which the shorter sides of both images are resized. Of images
            longer than 3:1 the middle is used.
        folder: opened with `open_folder`.
        seed: of every pair's run.
        device: where to compute.
        rank, world_size: which process this is, of how many.
        quiet: no progress bar, no notes.

    Raises:
        InputError: the recipe has no size, or the folder takes no file.
    """
    if recipe.size is None:
        raise InputError("the teacher needs a working size for its images; give one (--size)")
    share = tasks[rank::world_size]
    todo = [task for task in share if not (folder / FILES.format(task.name)).exists()]
    found, failed, totals = len(share) - len(todo), 0, list[float]()
    with progress_bar(len(share), "pair", quiet, found) as bar:
        for task in todo:
            try:
                row = _paint(task, backbone, recipe, recipe.size, seed, device)
            except (InputError, DivergedError) as error:
                failed += 1
                with open(folder / FAILED, "a") as file:  # a short line is appended at once: processes may share it
                    file.write(json.dumps({"name": task.name, "error": str(error)}) + "\n")
                if not quiet:
                    bar.write(f"note: pair '{task.name}' left out: {error}", file=sys.stderr)
            else:
                _write(folder / FILES.format(task.name), row)
                totals.append(row["losses"]["total"])
                bar.set_postfix_str(f"mean total loss {np.mean(totals):.4f}", refresh=False)
            bar.update()
    return TeachReport(len(totals), found, failed)


class TeacherPairs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Squares of a teacher's images, to be learned from.

    Item i is `{"structure", "appearance", "output"}`, each (3, size, size) uint8. Structure and output have the same
    random crop and mirroring, appearance has its own; they depend on the seed, the epoch and i only. It comes shuffled
    already, as `splice_ff.data.pairs.PairDataset` does: give it to a DataLoader without `shuffle`. Images are
    decoded when asked for, their shorter side resized to an eighth more than `size`.

    Args:
        folder: that `teach` wrote; pairs that are added later are not seen.
        size: pixels of the squares.
        seed: another seed, another order and other crops.

    Raises:
        InputError: no pairs in the folder, or (from an item) a file that is damaged.
    """

    def __init__(self, folder: Path, size: int, *, seed: int = 0) -> None:
        self.files = sorted(folder.glob(FILES.format("*")))
        if not self.files:
            raise InputError(f"{folder}: no teacher's pairs; make them with `splice-ff teach PAIRS -o {folder}`")
        self.size = size
        self.seed = seed
        # In shared memory, where persistent loader workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew and draw other crops; also inside running loader workers."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.item(int(self._epoch), index)

    def item(self, epoch: int, index: int) -> dict[str, Tensor]:
        """Item `index` of any epoch, whatever the current one is.

        Raises:
            IndexError: not in [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        order = torch.randperm(len(self), generator=seeded_generator(self.seed, epoch))
        row = _read(self.files[int(order[index])])
        side = side_for_crops(self.size)
        structure, appearance, output = (load_row({"image": row[name]}, side) for name in PICTURES)
        generator = seeded_generator(self.seed, epoch, index)
        together = square_crop(torch.cat([structure, output]), self.size, generator)
        structure, output = together.split(3)
        return {"structure": structure, "appearance": square_crop(appearance, self.size, generator), "output": output}


def _paint(
    task: TeacherTask, backbone: ViTFeatures, recipe: Recipe, size: int, seed: int, device: torch.device | str
) -> dict[str, Any]:
    structure, appearance = load_row(task.structure(), size), load_row(task.appearance(), size)
    start = time.perf_counter()
    images = [image[None].float() / 255 for image in (structure, appearance)]
    run = PairOptimizer(images[0], images[1], backbone, recipe, seed=seed, device=device)
    run.run()
    result = run.result()
    seconds = time.perf_counter() - start
    output = (result.image[0].clamp(0, 1) * 255).round().to(torch.uint8)
    pictures = zip(PICTURES, (structure, appearance, output), strict=True)
    return {
        "name": task.name,
        **{name: {"bytes": _png(picture), "path": None} for name, picture in pictures},
        "losses": result.losses,
        "seconds": seconds,
        "steps": run.step_count,
        "settings": json.dumps(result.settings),
    }


def _png(picture: Tensor) -> bytes:
    file = BytesIO()
    F.to_pil_image(picture).save(file, format="PNG")
    return file.getvalue()


def _features() -> Features:
    """The columns of a teacher's file; kept in it, so that `datasets` knows its images."""
    import datasets  # here, because it takes a second to import

    columns: dict[str, Any] = {"name": datasets.Value("string")}
    columns |= {name: datasets.Image() for name in PICTURES}
    number = datasets.Value("float64")
    columns["losses"] = dict.fromkeys(("total", "structure", "appearance", "identity"), number)
    columns |= {"seconds": number, "steps": datasets.Value("int64"), "settings": datasets.Value("string")}
    return datasets.Features(columns)


def _write(path: Path, row: Mapping[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.Table.from_pylist([dict(row)], schema=_features().arrow_schema)
    try:
        atomic_write(path, partial(parquet.write_table, table))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _read(path: Path) -> dict[str, Any]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            return file.read(columns=PICTURES, use_threads=False).to_pylist()[0]
    except (OSError, KeyError, IndexError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: damaged; delete it and run `splice-ff teach` again") from error
