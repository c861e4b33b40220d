"""Pairs of images for training the amortized generator, drawn from an indexed dataset.

    images = preload(ImageRows(open_dataset("photos/", "train[:95%]"), side_for_crops(128)))
    pairs = PairDataset(images, 128, PairMix(within=0.6, across=0.2, identity=0.2))

Which pair stands at place i of epoch e depends on the seed, e and i only: not on how many processes and loader
workers share the work, so a run can be resumed, or repeated on another number of GPUs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from splice_ff.data.decoding import close_up, square_crop
from splice_ff.data.image_dataset import ImageCache, ImageRows
from splice_ff.errors import ImageError, InputError
from splice_ff.utils.config_file import Section
from splice_ff.utils.seeding import seeded_generator

if TYPE_CHECKING:
    from splice_ff.data.mined_pairs import MinedPairs

log = logging.getLogger(__name__)


class PairMix(Section):
    """Shares of the kinds of pairs; they need not sum to 1. A `pydantic.ValidationError` where they make no sense."""

    within: float = Field(0.6, ge=0)
    """Another image with the same label. Without labels: any other image."""
    across: float = Field(0.3, ge=0)
    """An image with another label."""
    identity: float = Field(0.1, ge=0)
    """The same image, cropped alike, twice."""
    mined: float = Field(0.0, ge=0)
    """One of the nearest neighbors in a file made by `splice-ff pairs`; cropped and mirrored alike."""

    @classmethod
    def only(cls, **shares: float) -> PairMix:
        """These kinds and no others: `PairMix.only(within=1)`."""
        return cls(**dict.fromkeys(cls.model_fields, 0.0) | shares)

    @model_validator(mode="after")
    def _check(self) -> PairMix:
        if not any(share for _, share in self):
            raise ValueError("all shares are 0")
        return self

    def draw(self, generator: torch.Generator) -> str:
        """One of "within", "across", "identity", "mined"."""
        names, shares = zip(*self, strict=True)
        bounds = np.cumsum(shares)
        point = torch.rand((), generator=generator, dtype=torch.float64).item() * bounds[-1]
        return str(names[int(np.searchsorted(bounds, point, side="right"))])


class PairDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Pairs of squares from a dataset: every image is `first` once an epoch, its partner is drawn.

    Item `[epoch, i]`, or `[i]` of epoch 0, is
    `{"first": (3, size, size) uint8, "second": (3, size, size) uint8, "skipped": int}`. Items come shuffled already:
    give them to a DataLoader without `shuffle`, or to one whose `splice_ff.training.batches.InfiniteBatchSampler` goes
    through the epochs. An image that cannot be read is replaced by the next that can, counted in `skipped`, and named
    once a process in a log warning.

    Where a kind has no partner to offer, mined pairs become pairs within the label, and pairs within or across labels
    become pairs with any other image. Only a dataset with a single readable image pairs it with itself.

    Args:
        images: `preload(...)`, or `ImageRows`, which decodes at every access.
        size: pixels of the squares; at most the side of `images`.
        mix: how often which kind of pair.
        labels: keep only images with these labels, by name; by number where the dataset names none.
        mined: from `splice_ff.data.mined_pairs.read_mined_pairs`; needed where `mix.mined` is not 0.
        seed: another seed, other pairs.
        augment: random squares, mirrored half of the time; False takes the middle, for validation.
        zoom: smallest share of a square that is shown, enlarged to `size`: the same for both images of a pair.

    Raises:
        InputError: an unknown label, no images left, a `mix` that labels or `mined` cannot serve, `mined` of
            another dataset, or `size` larger than the images.
    """

    def __init__(
        self,
        images: ImageRows | ImageCache,
        size: int,
        mix: PairMix,
        *,
        labels: Sequence[str | int] | None = None,
        mined: MinedPairs | None = None,
        seed: int = 0,
        augment: bool = True,
        zoom: float = 1.0,
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
        self.zoom = zoom
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._warned: set[int] = set()

        names = np.array(images.labels if images.labels is not None else [""] * len(images))
        pool = np.setdiff1d(np.arange(len(images)), list(images.unreadable))
        if labels is not None:
            pool = pool[np.isin(names[pool], known_labels(labels, images.labels))]
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

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
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
        if kind != "identity":
            _, second, more = self._first_readable(self._partners(at, kind, generator))
            skipped += more
        crop = generator if self.augment else None
        shown = close_up(self.size, self.zoom, generator) if self.augment else None
        before = generator.get_state()
        square = square_crop(first, self.size, crop, shown)
        if kind == "mined":  # laid out alike: mirrored alike and cut at the same place they stay so
            generator.set_state(before)
        other = square if second is None else square_crop(second, self.size, crop, shown)
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
        """Places of possible partners, the best first; never `at`."""
        if kind == "mined":
            yield from self._neighbors(at, generator)
        if kind == "across":
            yield from self._others(at, False, generator)
            yield from self._others(at, True, generator)
        else:
            yield from self._others(at, True, generator)
            yield from self._others(at, False, generator)

    def _others(self, at: int, same_label: bool, generator: torch.Generator) -> Iterator[int]:
        """Places with the same label (or another), in their order from a random one on; never `at`."""
        label = self._label_of[at]
        start, stop = int(self._starts[label]), int(self._starts[label + 1])
        if same_label:
            count, gap, width = stop - start - 1, int(self._place[at]), 1
        else:
            count, gap, width, start = len(self) - (stop - start), start, stop - start, 0
        if not count:
            return
        drawn = randint(count, generator)
        for k in range(count):
            sorted_place = start + (drawn + k) % count
            yield int(self._by_label[sorted_place + width if sorted_place >= gap else sorted_place])

    def _neighbors(self, at: int, generator: torch.Generator) -> Iterator[int]:
        """Places of mined neighbors that are in the pool, from a random one on."""
        assert self.mined is not None
        rows = self.mined.of(int(self.pool[at]))
        places = np.searchsorted(self.pool, rows)
        places = places[self.pool[np.minimum(places, len(self) - 1)] == rows]
        drawn = randint(len(places), generator) if len(places) else 0
        yield from np.roll(places, -drawn).tolist()


def known_labels(wanted: Sequence[str | int], labels: Sequence[str] | None) -> list[str]:
    """The labels wanted, as strings; an InputError where the dataset lacks one."""
    known = sorted(set(labels or ()))
    unknown = [str(label) for label in wanted if str(label) not in known]
    if unknown:
        names = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        raise InputError(f"no label {', '.join(unknown)} in the dataset; it has {names or 'none'}")
    return [str(label) for label in wanted]


def randint(count: int, generator: torch.Generator) -> int:
    """A number in [0, count)."""
    return int(torch.randint(count, (), generator=generator))
