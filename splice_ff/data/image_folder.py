"""What lies in a folder of images: files that count, files that are left out, labels and splits.

The folder is listed here and not by `datasets`, which takes any folder called `test` or `dev board` for a split, reads
`*` and `[` in a path as a pattern, and leaves out without a word what fits none of its rules.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from splice_ff.images import READABLE
from splice_ff.utils.run_folder import is_run_folder

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test",
          "evaluation": "test"}  # fmt: skip
"""Names of folders and shards that mean a split, and that split."""


@dataclass
class Listing:
    """Files below a folder, as paths from there, sorted.

    Attributes:
        images: with a suffix of an image that can be read, in any case.
        shards: .parquet or .tar files, by suffix.
        left_out: what else there is, and how often.
    """

    images: list[PurePath] = field(default_factory=list)
    shards: dict[str, list[PurePath]] = field(default_factory=lambda: {".parquet": [], ".tar": []})
    left_out: Counter[str] = field(default_factory=Counter)


def list_folder(folder: Path) -> Listing:
    """List a folder and all folders below it, through links too.

    Left out are hidden files and folders (`.name`), folders that a run of this program has filled, and files of other
    kinds.
    """
    Image.init()
    readable = {suffix for suffix, kind in Image.EXTENSION.items() if kind in READABLE}
    listing, visited = Listing(), set[str]()
    for place, folders, files in os.walk(
        folder, followlinks=True, onerror=lambda _: listing.left_out.update(["folder that cannot be opened"])
    ):
        real = os.path.realpath(place)
        if real in visited:  # a link to a folder above, or to another one in here
            listing.left_out["folder linked twice"] += 1
            folders.clear()
            continue
        visited.add(real)
        here = PurePath(os.path.relpath(place, folder))
        for name in list(folders):
            kind = "hidden folder" if name.startswith(".") else "output folder of a run"
            if name.startswith(".") or is_run_folder(Path(place, name)):
                listing.left_out[kind] += 1
                folders.remove(name)
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                listing.left_out["hidden image"] += suffix in readable
            elif not _is_text(str(here / name)):
                listing.left_out["file whose name is not UTF-8"] += 1
            elif suffix in readable:
                listing.images.append(here / name)
            elif suffix in listing.shards:
                listing.shards[suffix].append(here / name)
            else:
                listing.left_out[f"{suffix} file" if suffix else "file without a suffix"] += 1
    for paths in (listing.images, *listing.shards.values()):
        paths.sort(key=str)
    return listing


def split_folders(images: Sequence[PurePath]) -> dict[str, list[PurePath]] | None:
    """Images by split, if all lie in top folders that are named as splits are; else None."""
    if not all(len(path.parts) > 1 and path.parts[0].lower() in SPLITS for path in images):
        return None
    splits: dict[str, list[PurePath]] = {}
    for path in images:
        splits.setdefault(SPLITS[path.parts[0].lower()], []).append(path)
    return splits


def split_shards(shards: Sequence[PurePath]) -> dict[str, list[PurePath]] | None:
    """Shards by split, if each has a split's name, or lies in a folder of this name; else None.

    As `train-00000-of-00010.parquet`, `test.tar` or `validation/0.parquet`.
    """
    splits: dict[str, list[PurePath]] = {}
    for path in shards:
        words = [path.parts[0], path.stem.split("-")[0].split("_")[0].split(".")[0]]
        names = [SPLITS[word.lower()] for word in words if word.lower() in SPLITS]
        if not names:
            return None
        splits.setdefault(names[0], []).append(path)
    return splits


def image_datasets(folder: Path, images: Sequence[PurePath]) -> dict[str, Dataset]:
    """Datasets of image files by split: `image` (undecoded) and, if they lie in subfolders, `label`.

    The label is the first folder below `folder` and the split's folder, or below the folders that all images share: of
    `2024/cat/1.jpg` and `2024/dog/2/3.jpg` it is `cat` and `dog`. An image beside those folders has no label. Rows are
    shuffled, in the same way for the same files: the last 5 % of images sorted by label would all be of one label.

    Args:
        folder: to which the paths are relative.
        images: paths from there. All are `train`, unless they lie in folders of splits.
    """
    splits = split_folders(images)
    labels = _labels(images, skip=splits is not None)
    parts = splits or {"train": list(images)}
    return {name: _image_dataset(folder, paths, labels) for name, paths in parts.items()}


def _image_dataset(folder: Path, images: Sequence[PurePath], labels: Mapping[PurePath, str | None]) -> Dataset:
    import datasets
    import pyarrow

    order = np.random.default_rng(0).permutation(len(images))
    files = [images[i] for i in order]
    paths = pyarrow.array([str(folder / file) for file in files], pyarrow.string())
    cells = pyarrow.StructArray.from_arrays([pyarrow.nulls(len(files), pyarrow.binary()), paths], ["bytes", "path"])
    columns, features = {"image": cells}, {"image": datasets.Image(decode=False)}
    if names := sorted({label for label in labels.values() if label is not None}):
        number = {name: i for i, name in enumerate(names)} | {None: -1}  # -1 is how datasets marks a missing label
        columns["label"] = pyarrow.array([number[labels[file]] for file in files], pyarrow.int64())
        features["label"] = datasets.ClassLabel(names=names)
    identity = sha256("\0".join(map(str, files)).encode()).hexdigest()[:16]
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(pyarrow.table(columns), info=info, fingerprint=identity)


def _labels(images: Sequence[PurePath], skip: int) -> dict[PurePath, str | None]:
    folders = [path.parts[skip:-1] for path in images]
    shared = sum(1 for _ in takewhile(lambda names: len({*names}) == 1, zip(*folders, strict=False)))
    depth = max(0, min(shared, min(map(len, folders)) - 1))
    return {path: names[depth] if len(names) > depth else None for path, names in zip(images, folders, strict=True)}


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # what Python makes of bytes that are no UTF-8
        return False
    return True
