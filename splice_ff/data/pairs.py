"""Pairs of images for training the amortized generator, drawn from a dataset.

    images = preload(open_dataset("photos/", "train[:95%]"), side_for_crops(128))
    pairs = PairDataset(images, size=128, mix=PairMix(within=0.6, across=0.2, identity=0.2))

Which pair stands at place i of epoch e depends on the seed, e and i only: not on how many processes and loader
workers share the work, so a run can be resumed, or repeated on another number of GPUs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splice_ff.data.image_dataset import (
    ImageCache,
    ImageRows,
    decode,
    label_name_function,
    load_row,
    open_dataset,
    preload,
    side_for_crops,
    square_crop,
)
from splice_ff.errors import ImageError, InputError
from splice_ff.utils.seeding import seeded_generator

if TYPE_CHECKING:
    from datasets import IterableDataset

    from splice_ff.data.mining import MinedPairs

__all__ = ["ImageCache", "ImageRows", "PairDataset", "PairMix", "StreamingPairs", "decode", "open_dataset", "preload"]

log = logging.getLogger(__name__)
KINDS = ("within", "across", "identity", "mined")


@dataclass(frozen=True)
class PairMix:
    """How often each kind of pair is drawn; the numbers are divided by their sum.

    Attributes:
        within: another image with the same label. Without labels: any other image.
        across: an image with another label.
        identity: the same image, cropped alike, twice.
        mined: a nearest neighbor, found by `splice_ff.data.mining`.

    Raises:
        InputError: a negative number, or nothing but zeros.
    """

    within: float = 1.0
    across: float = 0.0
    identity: float = 0.0
    mined: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= p < float("inf") for p in astuple(self)) or not any(astuple(self)):
            raise InputError(f"kinds of pairs: {self}; the numbers must be 0 or more, one of them more than 0")

    def draw(self, generator: torch.Generator) -> str:
        """One of "within", "across", "identity", "mined"."""
        bounds = np.cumsum(astuple(self))
        point = torch.rand((), generator=generator, dtype=torch.float64).item() * bounds[-1]
        return KINDS[int(np.searchsorted(bounds, point, side="right"))]


class PairDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Pairs of squares from a dataset: every image is `first` once an epoch, its partner is drawn.

    Item i is `{"first": (3, size, size) uint8, "second": (3, size, size) uint8, "skipped": int}`. It comes
    shuffled already: give it to a DataLoader without `shuffle`. An image that cannot be read is replaced by the next
    that can, counted in `skipped`, and named once a process in a log warning.

    Where a kind has no partner to offer (an image alone under its label, or without a readable or mined neighbor),
    mined pairs become pairs within the label, and those become identity pairs.

    Args:
        images: `preload(...)`, or `ImageRows`, which decodes at every access.
        size: pixels of the squares; at most the side of `images`.
        mix: how often which kind of pair.
        labels: keep only images with these labels, by name; by number where the dataset names none.
        mined: from `splice_ff.data.mining.read_mined_pairs`; needed where `mix.mined` is not 0.
        seed: another seed, other pairs.
        augment: random squares, mirrored half of the time; False takes the middle, for validation.

    Raises:
        InputError: an unknown label, no images left, a `mix` that labels or `mined` cannot serve, `mined` of
            another dataset, or `size` larger than the images.
    """

    def __init__(
        self,
        images: ImageRows | ImageCache,
        size: int,
        mix: PairMix = PairMix(),
        *,
        labels: Sequence[str | int] | None = None,
        mined: MinedPairs | None = None,
        seed: int = 0,
        augment: bool = True,
    ) -> None:
        side = images.side if isinstance(images, ImageRows) else images.pixels.shape[-1]
        if size > side:
            raise InputError(f"squares of {size} pixels cannot be cut from images of {side}")
        if mix.mined and mined is None:
            raise InputError("mined pairs need the file that `splice-ff pairs` writes")
        if mined is not None:
            mined.check(len(images))
        self.images = images
        self.size = size
        self.mix = mix
        self.mined = mined
        self.seed = seed
        self.augment = augment
        # In shared memory, where persistent loader workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._warned: set[int] = set()

        names = np.array(images.labels if images.labels is not None else [""] * len(images))
        pool = np.setdiff1d(np.arange(len(images)), list(images.unreadable))
        if labels is not None:
            pool = pool[np.isin(names[pool], _known_labels(labels, images.labels))]
        if not len(pool):
            raise InputError("the dataset has no images that can be read, or none with these labels")
        # Images sorted by label, so that those of one label, and all others, are ranges.
        self._label_of, sizes = np.unique(names[pool], return_inverse=True, return_counts=True)[1:]
        self._by_label = np.argsort(self._label_of, kind="stable")
        self._place = np.argsort(self._by_label)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self.pool = pool
        if mix.across and len(sizes) == 1:
            raise InputError("pairs across labels need a dataset with at least two labels")

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew and draw other partners and crops; also inside running loader workers.

        A loader prepared by accelerate calls this itself at the start of each pass, with its own count: set that with
        `loader.set_epoch(epoch)` when resuming.
        """
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.item(self.epoch, index)

    def item(self, epoch: int, index: int) -> dict[str, Any]:
        """Item `index` of any epoch, whatever the current one is.

        Raises:
            IndexError: not in [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = seeded_generator(self.seed, epoch, index)
        kind = self.mix.draw(generator)
        start = int(self._permutation(epoch)[index])
        everything = ((start + k) % len(self) for k in range(len(self)))
        at, first, skipped = self._first_readable(everything)
        if at is None:
            raise InputError("no image of the dataset can be read")
        second = None
        if kind == "mined":
            _, second, more = self._first_readable(self._neighbors(at, generator))
            skipped += more
            kind = "within"
        if kind != "identity" and second is None:
            _, second, more = self._first_readable(self._partners(at, kind, generator))
            skipped += more
        crop = generator if self.augment else None
        square = square_crop(first, self.size, crop)
        other = square if second is None else square_crop(second, self.size, crop)
        return {"first": square, "second": other, "skipped": skipped}

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self), generator=seeded_generator(self.seed, epoch)).numpy()
            self._order = (epoch, order)
        return self._order[1]

    def _first_readable(self, places: Iterator[int]) -> tuple[int | None, Any, int]:
        """The first of some places in the pool whose image can be read, the image, and how many could not."""
        skipped = 0
        for place in places:
            index = int(self.pool[place])
            try:
                return place, self.images[index], skipped
            except ImageError as error:
                skipped += 1
                if index not in self._warned:
                    self._warned.add(index)
                    log.warning("image %d skipped: %s", index, error)
        return None, None, skipped

    def _partners(self, at: int, kind: str, generator: torch.Generator) -> Iterator[int]:
        """Places with the same label (or another), in their order from a random one on; never `at`."""
        label = self._label_of[at]
        start, stop = int(self._starts[label]), int(self._starts[label + 1])
        if kind == "within":
            count, gap, width = stop - start - 1, int(self._place[at]), 1
        else:
            count, gap, width, start = len(self) - (stop - start), start, stop - start, 0
        if not count:
            return
        drawn = _randint(count, generator)
        for k in range(count):
            sorted_place = start + (drawn + k) % count
            yield int(self._by_label[sorted_place + width if sorted_place >= gap else sorted_place])

    def _neighbors(self, at: int, generator: torch.Generator) -> Iterator[int]:
        """Places of mined neighbors that are in the pool, from a random one on."""
        assert self.mined is not None
        rows = self.mined.of(int(self.pool[at]))
        places = np.searchsorted(self.pool, rows)
        places = places[self.pool[np.minimum(places, len(self) - 1)] == rows]
        drawn = _randint(len(places), generator) if len(places) else 0
        yield from np.roll(places, -drawn).tolist()


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

    Raises:
        InputError: mined pairs asked for, an unknown label, or `labels` or pairs across labels of a stream without
            labels. Where labels are words that show up as they come, an unknown one gives no item, and a log warning.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        size: int,
        mix: PairMix = PairMix(),
        *,
        labels: Sequence[str | int] | None = None,
        seed: int = 0,
        buffer: int = 1000,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        if mix.mined:
            raise InputError("mined pairs need a dataset that is not streamed")
        has_labels = "label" in (dataset.features or {})
        if not has_labels and (mix.across or labels is not None):
            raise InputError("the stream has no column 'label', which pairs across labels and a choice of labels need")
        if labels is not None and (names := getattr(dataset.features["label"], "names", None)):
            _known_labels(labels, names)
        # A buffer of 1: this shuffles the order of the files and mixes some; images are shuffled in the buffer here.
        self.dataset = split_dataset_by_node(dataset.shuffle(seed=seed, buffer_size=1), rank, world_size)
        self.size = size
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
        for row in self.dataset:
            label = self._label_name(row["label"]) if self._label_name else ""
            if self.labels is not None and label not in self.labels:
                continue
            try:
                picture = load_row(row, side_for_crops(self.size))
            except ImageError as error:
                log.warning("image skipped: %s", error)
                skipped += 1
                continue
            if len(held) < self.buffer:
                labels[len(held)] = label
                held.append(picture)
                continue
            at = _randint(self.buffer, generator)
            yield self._pair(held, labels, at, generator) | {"skipped": skipped}
            held[at], labels[at], skipped = picture, label, 0
        if not held and self.labels:
            log.warning("no image with the label %s in this part of the stream", " or ".join(sorted(self.labels)))
        for at in torch.randperm(len(held), generator=generator).tolist():
            yield self._pair(held, labels[: len(held)], at, generator) | {"skipped": skipped}
            skipped = 0

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
        partner = held[int(fitting[_randint(len(fitting), generator)])]
        return {"first": first, "second": square_crop(partner, self.size, generator)}


def _known_labels(wanted: Sequence[str | int], labels: Sequence[str] | None) -> list[str]:
    known = sorted(set(labels or ()))
    unknown = [str(label) for label in wanted if str(label) not in known]
    if unknown:
        raise InputError(f"no label {', '.join(unknown)} in the dataset; it has {', '.join(known) or 'none'}")
    return [str(label) for label in wanted]


def _randint(count: int, generator: torch.Generator) -> int:
    """A number in [0, count)."""
    return int(torch.randint(count, (), generator=generator))
