"""Pairs of images for training the amortized generator, drawn from a stream that is too large to index."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splice_ff.data.color_sharpening import sharpen_colors
from splice_ff.data.decoding import load_row, side_for_crops, square_crop
from splice_ff.data.image_dataset import label_name_function
from splice_ff.data.pairs import PairMix, known_labels, randint
from splice_ff.errors import ImageError, InputError, first_line
from splice_ff.utils.seeding import seeded_generator

if TYPE_CHECKING:
    from datasets import IterableDataset

log = logging.getLogger(__name__)


class StreamingPairs(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Pairs of squares from a stream, for datasets that are too large to index.

    Items are those of `PairDataset`. Every image is `first` once an epoch. The stream passes through a buffer of
    decoded images, from which `first` is drawn at random and its partner too; where the buffer has no image with
    the same label (or another), any other one is taken, and a log warning says so once a process. Processes and loader
    workers read disjoint parts, and together all of it; parts may differ in length, so count steps, not epochs. What is
    drawn depends on their number. An image that cannot be read is counted in the next item's `skipped`.

    Do not let accelerate prepare its loader: that would divide the stream a second time.

    Args:
        dataset: from `open_dataset(..., streaming=True)`.
        size: pixels of the squares; images are kept an eighth larger.
        mix: how often which kind of pair; none mined.
        labels: keep only images with these labels, as for `PairDataset`.
        seed: another seed, other pairs. The same in all processes.
        buffer: images held by each worker; 1 000 at 128 px take some 100 MB.
        rank, world_size: which process this is, of how many.
        color_sharpening: see `sharpen_colors`.

    Raises:
        InputError: mined pairs asked for, an unknown label, or `labels` or pairs across labels of a stream without
            labels. Where labels are words that show up as they come, an unknown one gives no item, and a log warning.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        size: int,
        mix: PairMix,
        *,
        labels: Sequence[str | int] | None = None,
        seed: int = 0,
        buffer: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        color_sharpening: float = 0.0,
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        if mix.mined:
            raise InputError("mined pairs need a dataset that is not streamed")
        has_labels = "label" in (dataset.features or {})
        if not has_labels and (mix.across or labels is not None):
            raise InputError("the stream has no column 'label', which pairs across labels and a choice of labels need")
        if labels is not None and (names := getattr(dataset.features["label"], "names", None)):
            known_labels(labels, names)
        # A buffer of 1: this shuffles the order of the files and mixes some; images are shuffled in the buffer here.
        self.dataset = split_dataset_by_node(dataset.shuffle(seed=seed, buffer_size=1), rank, world_size)
        self.size = size
        self.color_sharpening = color_sharpening
        self.mix = mix
        self.labels = None if labels is None else {str(label) for label in labels}
        self.seed = seed
        self.buffer = buffer
        self.rank = rank
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._warned: set[str] = set()
        self._label_name = label_name_function(dataset.features) if has_labels else None

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew and draw other partners and crops."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        generator = seeded_generator(self.seed, int(self._epoch), self.rank, worker.id if worker else 0)
        self.dataset.set_epoch(int(self._epoch))
        held: list[Tensor] = []
        labels = np.empty(self.buffer, dtype=object)
        skipped = 0
        for row in self._rows():
            label = self._label_name(row["label"]) if self._label_name else ""
            if self.labels is not None and label not in self.labels:
                continue
            try:
                image = sharpen_colors(load_row(row, side_for_crops(self.size)), self.color_sharpening)
            except ImageError as error:
                log.warning("image skipped: %s", error)
                skipped += 1
                continue
            if len(held) < self.buffer:
                labels[len(held)] = label
                held.append(image)
                continue
            at = randint(self.buffer, generator)
            yield self._pair(held, labels, at, generator) | {"skipped": skipped}
            held[at], labels[at], skipped = image, label, 0
        if not held and self.labels:
            log.warning("no image with the label %s in this part of the stream", " or ".join(sorted(self.labels)))
        for at in torch.randperm(len(held), generator=generator).tolist():
            yield self._pair(held, labels[: len(held)], at, generator) | {"skipped": skipped}
            skipped = 0

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self.dataset
        except Exception as error:  # datasets, tarfile, pyarrow and the network raise what they like
            raise InputError(f"the stream cannot be read to its end ({first_line(error)}); check its files") from error

    def _pair(self, held: list[Tensor], labels: NDArray[Any], at: int, generator: torch.Generator) -> dict[str, Any]:
        kind = self.mix.draw(generator)
        first = square_crop(held[at], self.size, generator)
        if kind == "identity" or len(held) == 1:
            return {"first": first, "second": first}
        same = labels == labels[at]
        fitting = np.flatnonzero(same if kind == "within" else ~same)
        fitting = fitting[fitting != at]
        if not len(fitting):
            if kind not in self._warned:
                self._warned.add(kind)
                log.warning("pairs %s labels: of %d images of the stream none fits; any is taken", kind, len(held))
            fitting = np.delete(np.arange(len(held)), at)
        partner = held[int(fitting[randint(len(fitting), generator)])]
        return {"first": first, "second": square_crop(partner, self.size, generator)}
