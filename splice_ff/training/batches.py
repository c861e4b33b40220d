"""Batches of pairs for the training loop, the same whatever the number of processes and workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, cycle, repeat
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from splice_ff.data.decoding import side_for_crops
from splice_ff.data.image_dataset import ImageRows, preload
from splice_ff.data.mined_pairs import read_mined_pairs
from splice_ff.data.pairs import PairDataset, PairMix
from splice_ff.data.sources import open_dataset
from splice_ff.data.streaming_pairs import StreamingPairs
from splice_ff.data.teacher_pairs import IMAGES, TeacherPairs
from splice_ff.errors import InputError, first_line
from splice_ff.training.config import TrainingConfig

log = logging.getLogger(__name__)
MAX_BATCH_BYTES = 2**34
"""Of a process's images in float32: far more than any device can train with."""

SAME_IMAGE = 2
"""Of 255: images that differ less, on average, are one image, perhaps saved twice."""


@dataclass(frozen=True)
class TeacherBatch:
    """Pairs with the outputs that the teacher painted, each (B, 3, S, S) in [0, 1]."""

    structure: Tensor
    appearance: Tensor
    output: Tensor
    weight: float
    """Of the mean of a loss over these; see `Batch`."""


@dataclass(frozen=True)
class Batch:
    """Pairs of squares, each (B, 3, S, S) in [0, 1], on the device.

    A step is taken from the batches of all processes and of gradient accumulation. The identity loss is taken on every
    so many-th pair of a step, and the teacher's pairs are a share of a step, so that batches may hold different numbers
    of them, or none. A mean over those of one batch is to be multiplied by a weight; averaged over the batches it is
    then the mean over the step, as one process with one large batch computes it.
    """

    first: Tensor
    second: Tensor
    skipped: int
    """Images that could not be read, while making these."""
    identity: slice
    """Pairs on which the identity loss is taken."""
    identity_weight: float
    """Of the mean of the identity loss over these; 0 where there are none."""
    teacher: TeacherBatch | None = None


class InfiniteBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of consecutive items `(epoch, index)` for one process, without end.

    All processes together take the items of every epoch in order: none is missed or given twice, and an epoch's last
    step flows over into the next epoch.

    Args:
        length: items in an epoch.
        per_step: items that a step takes, in all its batches. Where they are fewer than the batches, some batches would
            be empty: these are left out.
        accumulation: batches that a process takes in a step.
        start: items that all processes together have had before.
        rank, world_size: which process, of how many.
    """

    def __init__(
        self,
        length: int,
        per_step: int,
        *,
        accumulation: int = 1,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.length, self.per_step, self.start = length, per_step, start
        self.accumulation, self.rank, self.world_size = accumulation, rank, world_size

    def part(self, batch: int) -> range:
        """Places in its step of this process's batch number `batch` of a step, from 0."""
        place, parts = batch * self.world_size + self.rank, self.accumulation * self.world_size
        return range(place * self.per_step // parts, (place + 1) * self.per_step // parts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for begin in count(self.start, self.per_step):
            for batch in range(self.accumulation):
                if places := self.part(batch):
                    yield [divmod(begin + place, self.length) for place in places]


class TrainingData:
    """Training batches and held-out pairs of a run.

    Args:
        config: the run's.
        accelerator: which process this is, of how many, and its device.
        quiet: no progress bar, no warnings.

    Raises:
        InputError: the data cannot be opened, or does not serve the settings.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, quiet: bool = False) -> None:
        self.config, self.accelerator = config, accelerator
        settings, self.batch_size = config.data, config.optimizer.batch_size
        self.accumulation = config.optimizer.gradient_accumulation_steps
        self.pairs_a_step = self.batch_size * self.accumulation * accelerator.num_processes
        bytes_a_batch = 2 * 3 * settings.size**2 * 4 * self.batch_size
        if bytes_a_batch > MAX_BATCH_BYTES:
            raise InputError(
                f"a batch of {self.batch_size} pairs of {settings.size} px takes {bytes_a_batch / 2**30:.0f} GiB: set "
                "a smaller optimizer.batch_size, and more optimizer.gradient_accumulation_steps"
            )
        self.mix = settings.pairs
        side = side_for_crops(settings.size)
        self.quiet = quiet or not accelerator.is_local_main_process
        dataset: Any = open_dataset(settings.source, settings.split, settings.streaming, quiet=self.quiet)
        held_out: Any = self._open_held_out()
        self.pairs: PairDataset | StreamingPairs
        self.unreadable = 0
        """Images that could not be decoded while preloading."""
        if settings.streaming:
            self.pairs = StreamingPairs(
                dataset, settings.size, self._streamable(dataset.features), labels=settings.labels, seed=config.seed,
                rank=accelerator.process_index, world_size=accelerator.num_processes,
                color_sharpening=settings.color_sharpening,
            )  # fmt: skip
        else:
            mined = None
            if settings.mined_pairs:
                mined = read_mined_pairs(settings.mined_pairs)
                mined.check(len(dataset), settings.split)
            rows = ImageRows(dataset, side, settings.color_sharpening)
            images = preload(rows, labels=settings.labels, quiet=self.quiet) if settings.preload else rows
            self.unreadable = len(images.unreadable)
            mix = self._servable(self.mix, images.labels, settings.split)
            self.pairs = PairDataset(
                images, settings.size, mix, labels=settings.labels, mined=mined, seed=config.seed, zoom=settings.zoom
            )
            if len(self.pairs) < 2 and mix.identity < sum(share for _, share in mix):
                raise InputError(f"{settings.source}: {settings.split} has 1 image, and pairs need two; add images")
        self.held_out: PairDataset | None = None
        if held_out is not None:
            rows = ImageRows(held_out, side, settings.color_sharpening)
            mix = self._servable(_held_out_mix(self.mix), rows.labels, settings.held_out)
            self.held_out = PairDataset(
                rows, settings.size, mix, labels=settings.labels, seed=config.seed, augment=False
            )
            if len(self.held_out) < 2:
                raise InputError(
                    f"{settings.source}: {settings.held_out} has 1 image, and validation needs pairs of two: hold out "
                    "more, as data.split='train[:80%]' data.held_out='train[80%:]' does, or none, by data.held_out=null"
                )
        self.teacher_pairs: TeacherPairs | None = None
        if config.distill:
            self.teacher_pairs = TeacherPairs(config.distill.source, settings.size, seed=config.seed)
            self.teacher_pairs_a_step = max(1, round(config.distill.share * self.pairs_a_step))

    def _open_held_out(self) -> Any:
        settings = self.config.data
        if settings.held_out is None:
            return None
        try:
            return open_dataset(settings.source, settings.held_out, quiet=self.quiet)
        except InputError as error:
            raise InputError(f"{error} (data.held_out; data.held_out=null trains without validation)") from error

    def _servable(self, mix: PairMix, labels: list[str] | None, split: str | None) -> PairMix:
        """Without pairs across labels, where there are not two; that is said."""
        wanted = {str(label) for label in self.config.data.labels or labels or ()}
        if not mix.across or len(wanted & set(labels or ())) > 1:
            return mix
        if not self.quiet:
            log.warning(
                "%s has fewer than two labels, so pairs across labels become pairs of any two of its images", split
            )
        return mix.model_copy(update={"across": 0.0, "within": mix.within + mix.across})

    def _streamable(self, features: Mapping[str, Any]) -> PairMix:
        """The same for a stream, as far as its labels are known before they come; `StreamingPairs` tells the rest."""
        label, chosen = features.get("label"), self.config.data.labels
        known = chosen or getattr(label, "names", None)
        if label is not None and known is None:
            return self.mix
        return self._servable(self.mix, known if label is not None else None, self.config.data.split)

    @property
    def has_validation(self) -> bool:
        """Whether there are held-out pairs."""
        return self.held_out is not None

    def batches(self, pairs_seen: int) -> Iterator[Batch]:
        """Batches without end, after so many pairs that all processes together have had before.

        A stream cannot be entered in the middle: after a resume it starts again, shuffled as another epoch.
        """
        pairs = (
            self._stream(pairs_seen)
            if isinstance(self.pairs, StreamingPairs)
            else self._indexed(self.pairs, self._sampler(len(self.pairs), self.pairs_a_step, pairs_seen))
        )
        places = self._sampler(0, self.pairs_a_step)
        teacher = self._teacher_batches(pairs_seen)
        every = self.config.loss.identity_every
        in_step, parts = -(-self.pairs_a_step // every), self.accumulation * self.accelerator.num_processes
        for raw, batch in zip(pairs, cycle(range(self.accumulation)), strict=False):
            identity = slice(-places.part(batch).start % every, self.batch_size, every)
            yield Batch(
                self._to_device(raw["first"]),
                self._to_device(raw["second"]),
                int(raw["skipped"].sum()),
                identity,
                len(range(self.batch_size)[identity]) * parts / in_step,
                next(teacher),
            )

    def _teacher_batches(self, pairs_seen: int) -> Iterator[TeacherBatch | None]:
        if self.teacher_pairs is None:
            yield from repeat(None)
        else:
            start = pairs_seen * self.teacher_pairs_a_step // self.pairs_a_step
            sampler = self._sampler(len(self.teacher_pairs), self.teacher_pairs_a_step, start)
            raw = self._indexed(self.teacher_pairs, sampler)
            weight = self.accumulation * self.accelerator.num_processes / self.teacher_pairs_a_step
            for batch in cycle(range(self.accumulation)):
                if size := len(sampler.part(batch)):
                    images = next(raw)
                    structure, appearance, output = (self._to_device(images[name]) for name in IMAGES)
                    yield TeacherBatch(structure, appearance, output, size * weight)
                else:
                    yield None

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the held-out pairs, in batches; always the same ones.

        Pairs of one image with itself, or with a copy of itself, are left out, as copying solves them: there may be
        fewer than `run.validation_pairs`, or none.
        """
        assert self.held_out is not None
        wanted = min(self.config.run.validation_pairs, len(self.held_out))
        indices = range(self.accelerator.process_index, wanted, self.accelerator.num_processes)
        for start in range(0, len(indices), self.batch_size):
            items = [self.held_out[i] for i in indices[start : start + self.batch_size]]
            pairs = [(item["first"], item["second"]) for item in items]
            if differing := [(a, b) for a, b in pairs if (a.float() - b.float()).abs().mean() > SAME_IMAGE]:
                first, second = map(torch.stack, zip(*differing, strict=True))
                yield self._to_device(first), self._to_device(second)

    def _sampler(self, length: int, per_step: int, start: int = 0) -> InfiniteBatchSampler:
        return InfiniteBatchSampler(
            length,
            per_step,
            accumulation=self.accumulation,
            start=start,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def _indexed(self, dataset: Any, sampler: InfiniteBatchSampler) -> Iterator[dict[str, Tensor]]:
        return _read(self._loader(dataset, batch_sampler=sampler))

    def _stream(self, pairs_seen: int) -> Iterator[dict[str, Tensor]]:
        assert isinstance(self.pairs, StreamingPairs)
        loader = self._loader(self.pairs, batch_size=self.batch_size, drop_last=True)
        for epoch in count(pairs_seen):  # another order than before a resume
            self.pairs.set_epoch(epoch)
            batch = None
            for batch in _read(loader):
                yield batch
            if batch is None:
                raise InputError(
                    f"{self.config.data.source}: an epoch of the stream has not one whole batch for each process and "
                    "loader worker; check data.labels, or set a smaller optimizer.batch_size or data.workers"
                )

    def _loader(self, dataset: Any, **how: Any) -> DataLoader[dict[str, Tensor]]:
        workers = self.config.data.workers
        is_cuda = self.accelerator.device.type == "cuda"
        return DataLoader(dataset, num_workers=workers, pin_memory=is_cuda, persistent_workers=workers > 0, **how)

    def _to_device(self, pixels: Tensor) -> Tensor:
        """uint8 to [0, 1] on the device."""
        return pixels.to(self.accelerator.device, non_blocking=True).float() / 255


def _read(loader: DataLoader[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """All batches of a loader; what ends one of its workers is an error of one line."""
    try:
        yield from loader
    except InputError as error:  # torch puts a worker's whole traceback before the message
        raise InputError(str(error).rsplit("InputError: ", 1)[-1]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(f"{first_line(error)} Set data.workers to fewer, or to 0") from error


def _held_out_mix(mix: PairMix) -> PairMix:
    """The kinds to judge by: pairs of two images, unless the run trains on identity pairs alone."""
    within = mix.within + mix.mined
    return PairMix.only(within=within, across=mix.across) if within or mix.across else PairMix.only(identity=1)
