"""A teacher's pairs on disk, one parquet file each, and squares of them to train on (distillation).

`splice_ff.training.teacher` writes them. `datasets.load_dataset("parquet", data_files="DIR/*.parquet")` reads them as
one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from splice_ff.data.decoding import load_row, side_for_crops, square_crop
from splice_ff.errors import InputError
from splice_ff.utils.files import atomic_write, reason
from splice_ff.utils.seeding import seeded_generator

if TYPE_CHECKING:
    from datasets import Features

IMAGES = ["structure", "appearance", "output"]
FILES = "pair-{}.parquet"
"""Prefixed, as `datasets` passes over files whose names begin with a dot or two underscores."""


class TeacherPairs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Squares of a teacher's images, to be learned from.

    Item `[epoch, i]`, or `[i]` of epoch 0, is `{"structure", "appearance", "output"}`, each (3, size, size) uint8.
    Structure and output have the same random crop and mirroring, appearance has its own; they depend on the seed, the
    epoch and i only. Items come shuffled already, as those of `splice_ff.data.pairs.PairDataset` do. Images are
    decoded when asked for, their shorter side resized to an eighth more than `size`.

    Args:
        folder: that `splice-ff teach` wrote; pairs that are added later are not seen.
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
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, torch.randperm(len(self), generator=seeded_generator(self.seed, epoch)).numpy())
        row = read_teacher_pair(self.files[self._order[1][index]])
        side = side_for_crops(self.size)
        structure, appearance, output = (load_row({"image": row[name]}, side) for name in IMAGES)
        generator = seeded_generator(self.seed, epoch, index)
        together = square_crop(torch.cat([structure, output]), self.size, generator)
        structure, output = together.split(3)
        return {"structure": structure, "appearance": square_crop(appearance, self.size, generator), "output": output}


def write_teacher_pair(path: Path, images: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a pair as a parquet file of one row, whole or not at all.

    Args:
        path: named by `FILES`.
        images: `structure`, `appearance` and `output`, each (3, H, W) uint8; kept as PNG.
        facts: `name`; `losses` (`total`, `structure`, `appearance`, `identity`); `seconds`; `steps`; `settings`, JSON.

    Raises:
        InputError: the place takes no file.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    row = {**facts, **{name: {"bytes": _png(images[name]), "path": None} for name in IMAGES}}
    table = pyarrow.Table.from_pylist([row], schema=_features().arrow_schema)
    try:
        atomic_write(path, partial(parquet.write_table, table))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from error


def read_teacher_pair(path: Path) -> dict[str, Any]:
    """The images of a pair, as rows for `load_row`.

    Raises:
        InputError: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            return file.read(columns=IMAGES, use_threads=False).to_pylist()[0]
    except (OSError, KeyError, IndexError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: damaged; delete it and run `splice-ff teach` again") from error


def _features() -> Features:
    """The columns of a teacher's file; kept in it, so that `datasets` knows its images."""
    import datasets  # here, because it takes a second to import

    columns: dict[str, Any] = {"name": datasets.Value("string")}
    columns |= {name: datasets.Image() for name in IMAGES}
    number = datasets.Value("float64")
    columns["losses"] = dict.fromkeys(("total", "structure", "appearance", "identity"), number)
    columns |= {"seconds": number, "steps": datasets.Value("int64"), "settings": datasets.Value("string")}
    return datasets.Features(columns)


def _png(image: Tensor) -> bytes:
    file = BytesIO()
    TF.to_pil_image(image).save(file, format="PNG")
    return file.getvalue()
