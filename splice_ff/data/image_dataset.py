"""The images of a dataset: decoded when asked for, or all of them decoded into memory once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from splice_ff.data.color_sharpening import sharpen_colors
from splice_ff.data.decoding import load_row, square_crop
from splice_ff.errors import ImageError
from splice_ff.utils.console import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset


def label_names(dataset: Dataset) -> list[str] | None:
    """The label of every row as a string, in order; None where the dataset has no labels."""
    if "label" not in dataset.features:
        return None
    name_of = label_name_function(dataset.features)
    return [name_of(label) for label in dataset.with_format(None)["label"]]


def label_name_function(features: Mapping[str, Any]) -> Callable[[Any], str]:
    """The function from a stored `label` to its name: a `ClassLabel`'s names, else what is stored, as a string."""
    names = getattr(features["label"], "names", None)
    return partial(_class_name, names) if names else str


class ImageRows(torch.utils.data.Dataset[Tensor]):
    """The images of a map-style dataset, decoded when asked for.

    Args:
        dataset: from `open_dataset`, not streaming.
        side: shorter side, in pixels, to which each is resized.
        color_sharpening: see `sharpen_colors`.
    """

    def __init__(self, dataset: Dataset, side: int, color_sharpening: float = 0.0) -> None:
        self.dataset = dataset
        self.side = side
        self.color_sharpening = color_sharpening
        self.labels = label_names(dataset)
        self.unreadable: dict[int, str] = {}  # not known before reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        """`(3, H, W)` uint8, shorter side `side`. Raises ImageError where the image cannot be read."""
        return sharpen_colors(load_row(self.dataset[int(index)], self.side), self.color_sharpening)


@dataclass(eq=False)
class ImageCache(torch.utils.data.Dataset[Tensor]):
    """Every image of a dataset, decoded: what `preload` returns.

    Attributes:
        pixels: `(N, 3, side, side)` uint8, the middle square of each.
        labels: label of each, or None where the dataset has no labels.
        unreadable: why an image could not be read, by its index; its pixels are zeros.
    """

    pixels: Tensor
    labels: list[str] | None = None
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        """`(3, side, side)` uint8, a view."""
        return self.pixels[index]


def preload(
    rows: ImageRows, *, labels: Sequence[str | int] | None = None, workers: int = 0, quiet: bool = False
) -> ImageCache:
    """Decode images into memory once, so that training never waits for a decoder.

    It takes `3 * side**2` bytes an image, in every process that calls it: 30 000 at 144 px are 1.9 GB.

    Args:
        rows: the images; squares of their `side` are kept, see `side_for_crops`.
        labels: decode only images with these labels; the others stay black, for a `PairDataset` of the same labels.
        workers: processes that decode; 0 decodes in this one.
        quiet: no progress bar.
    """
    # zeros that are never written take no memory
    cache = ImageCache(torch.zeros(len(rows), 3, rows.side, rows.side, dtype=torch.uint8), rows.labels)
    names = {str(label) for label in labels or ()}
    wanted = [i for i, label in enumerate(rows.labels or [""] * len(rows)) if labels is None or label in names]
    squares = torch.utils.data.Subset(_Squares(rows), wanted)
    loader = torch.utils.data.DataLoader(squares, batch_size=64, num_workers=workers, collate_fn=_stack)
    done = 0
    with progress_bar(len(wanted), "image", quiet, what="decoding") as bar:
        for pixels, failures in loader:
            indices = wanted[done : done + len(pixels)]
            cache.pixels[indices] = pixels
            cache.unreadable |= {indices[i]: why for i, why in failures.items()}
            done += len(pixels)
            bar.update(len(pixels))
    return cache


class _Squares(torch.utils.data.Dataset[Tensor | str]):
    """Middle squares of `ImageRows`, or why there is none."""

    def __init__(self, rows: ImageRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return square_crop(self.rows[index], self.rows.side)
        except ImageError as error:
            return str(error)


def _stack(items: list[Tensor | str]) -> tuple[Tensor, dict[int, str]]:
    """A batch of squares, zeros where there is none, and why by place."""
    failures = {i: item for i, item in enumerate(items) if isinstance(item, str)}
    squares = [item for item in items if isinstance(item, Tensor)]
    blank = torch.zeros_like(squares[0]) if squares else torch.zeros(3, 1, 1, dtype=torch.uint8)
    return torch.stack([blank if isinstance(item, str) else item for item in items]), failures


def _class_name(names: Sequence[str], label: int | None) -> str:
    return names[label] if label is not None and label >= 0 else "none"  # -1 is how datasets marks a missing label
