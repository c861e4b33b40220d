"""Batches of pairs for the training loop, the same whatever the number of processes and workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from splice_ff.data.decoding import side_for_crops
from splice_ff.data.image_dataset import ImageRows, preload
from splice_ff.data.mined_pairs import read_mined_pairs
from splice_ff.data.pairs import PairDataset, PairMix
from splice_ff.data.sources import open_dataset
from splice_ff.data.streaming_pairs import StreamingPairs
from splice_ff.data.teacher_pairs import IMAGES, TeacherPairs
from splice_ff.errors import InputError
from splice_ff.training.config import TrainingConfig


@dataclass(frozen=True)
class TeacherBatch:
    """Pairs with the outputs that the teacher painted, each (B, 3, S, S) in [0, 1]."""

    structure: Tensor
    appearance: Tensor
    output: Tensor


@dataclass(frozen=True)
class Batch:
    """Pairs of squares, each (B, 3, S, S) in [0, 1], on the device."""

    first: Tensor
    second: Tensor
    skipped: int
    """Images that could not be read, while making these."""
    teacher: TeacherBatch | None = None


class InfiniteBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of consecutive items `(epoch, index)` for one process, without end.

    All processes together take the items of every epoch in order: none is missed or given twice, and an epoch's last
    batch flows over into the next epoch.

    Args:
        length: items in an epoch.
        batch_size: a process and batch.
        start: batches that each process has had already.
        rank, world_size: which process, of how many.
    """

    def __init__(self, length: int, batch_size: int, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.batch_size, self.start, self.rank, self.world_size = (
            length,
            batch_size,
            start,
            rank,
            world_size,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in count(self.start):
            begin = (batch * self.world_size + self.rank) * self.batch_size
            yield [divmod(ordinal, self.length) for ordinal in range(begin, begin + self.batch_size)]


class TrainingData:
    """Training batches and held-out pairs of a run.

    Raises:
        InputError: the data cannot be opened, or does not serve the settings.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, quiet: bool = False) -> None:
        self.config, self.accelerator = config, accelerator
        settings, self.batch_size = config.data, config.optimizer.batch_size
        self.pairs_a_step = self.batch_size * config.optimizer.gradient_accumulation_steps * accelerator.num_processes
        self.mix = settings.pairs
        side = side_for_crops(settings.size)
        dataset: Any = open_dataset(settings.source, settings.split, settings.streaming)
        held_out: Any = self._open_held_out()
        self.pairs: Dataset[dict[str, Any]]
        self.unreadable = 0
        """Images that could not be decoded while preloading."""
        hidden = quiet or not accelerator.is_local_main_process
        if settings.streaming:
            self.pairs = StreamingPairs(
                dataset, settings.size, self._streamable(dataset.features), labels=settings.labels, seed=config.seed,
                rank=accelerator.process_index, world_size=accelerator.num_processes,
            )  # fmt: skip
        else:
            mined = None
            if settings.mined_pairs:
                mined = read_mined_pairs(settings.mined_pairs)
                mined.check(len(dataset), settings.split)
            images = (
                preload(dataset, side, labels=settings.labels, quiet=hidden)
                if settings.preload
                else ImageRows(dataset, side)
            )
            self.unreadable = len(images.unreadable)
            mix = self._servable(self.mix, images.labels, settings.split)
            self.pairs = PairDataset(images, settings.size, mix, labels=settings.labels, mined=mined, seed=config.seed)
        self.held_out: PairDataset | None = None
        if held_out is not None:
            rows = ImageRows(held_out, side)
            mix = self._servable(_held_out_mix(self.mix), rows.labels, settings.held_out)
            self.held_out = PairDataset(
                rows, settings.size, mix, labels=settings.labels, seed=config.seed, augment=False
            )
        self.teacher_pairs: TeacherPairs | None = None
        if config.distill:
            self.teacher_pairs = TeacherPairs(config.distill.source, settings.size, seed=config.seed)
            self.teacher_pairs_a_batch = max(1, round(config.distill.share * self.batch_size))

    def _open_held_out(self) -> Any:
        settings = self.config.data
        if settings.held_out is None:
            return None
        try:
            return open_dataset(settings.source, settings.held_out)
        except InputError as error:
            raise InputError(f"{error} (data.held_out; data.held_out=null trains without validation)") from error

    def _servable(self, mix: PairMix, labels: list[str] | None, split: str | None) -> PairMix:
        """Without pairs across labels, where there are not two; that is said."""
        wanted = {str(label) for label in self.config.data.labels or labels or ()}
        if not mix.across or len(wanted & set(labels or ())) > 1:
            return mix
        if self.accelerator.is_main_process:
            tqdm.write(f"note: {split} has not two labels: pairs across labels become pairs of any two images of it")
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

    def batches(self, steps_taken: int) -> Iterator[Batch]:
        """Batches without end, from where a run of so many steps had come.

        A stream cannot be entered in the middle: after a resume it starts again, shuffled as another epoch.
        """
        batches_taken = steps_taken * self.config.optimizer.gradient_accumulation_steps
        pairs = (
            self._stream(steps_taken)
            if self.config.data.streaming
            else self._indexed(self.pairs, self.batch_size, batches_taken)
        )
        teacher_pairs = (
            self._indexed(self.teacher_pairs, self.teacher_pairs_a_batch, batches_taken) if self.teacher_pairs else None
        )
        for raw in pairs:
            teacher = None
            if teacher_pairs is not None:
                painted = next(teacher_pairs)
                teacher = TeacherBatch(*(self._to_device(painted[name]) for name in IMAGES))
            skipped = int(raw["skipped"].sum())
            yield Batch(self._to_device(raw["first"]), self._to_device(raw["second"]), skipped, teacher)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the held-out pairs, in batches; always the same ones."""
        assert self.held_out is not None
        wanted = min(self.config.run.validation_pairs, len(self.held_out))
        indices = range(self.accelerator.process_index, wanted, self.accelerator.num_processes)
        for start in range(0, len(indices), self.batch_size):
            items = [self.held_out[i] for i in indices[start : start + self.batch_size]]
            first, second = (self._to_device(torch.stack([item[k] for item in items])) for k in ("first", "second"))
            yield first, second

    def _indexed(self, dataset: Any, batch_size: int, batches_taken: int) -> Iterator[dict[str, Tensor]]:
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        sampler = InfiniteBatchSampler(len(dataset), batch_size, batches_taken, *ranks)
        return iter(self._loader(dataset, batch_sampler=sampler))

    def _stream(self, steps_taken: int) -> Iterator[dict[str, Tensor]]:
        assert isinstance(self.pairs, StreamingPairs)
        loader = self._loader(self.pairs, batch_size=self.batch_size, drop_last=True)
        for epoch in count(steps_taken):  # another order than before a resume
            self.pairs.set_epoch(epoch)
            batch = None
            for batch in loader:
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


def _held_out_mix(mix: PairMix) -> PairMix:
    """The kinds to judge by: pairs of two images, unless the run trains on identity pairs alone."""
    within = mix.within + mix.mined
    return PairMix.only(within=within, across=mix.across) if within or mix.across else PairMix.only(identity=1)
