"""All images of a run, decoded once and held as bytes; batches are drawn from them without a loader."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor

from splice_ff.data.image_dataset import ImageRows, preload
from splice_ff.data.sources import open_dataset
from splice_ff.errors import InputError
from splice_ff.pretraining.config import ImagesConfig
from splice_ff.utils.seeding import seeded_generator


class HeldImages:
    """Squares of all images, `pixels` (N, 3, side, side) uint8, and their `labels`, None where there are none.

    Raises:
        InputError: the data cannot be opened or read, or does not fit into the memory of the device.
    """

    def __init__(self, settings: ImagesConfig, device: torch.device, split: str | None = None, quiet: bool = False):
        dataset = open_dataset(settings.source, split or settings.split, quiet=quiet)
        self.device = device
        needed = 3 * settings.side**2 * len(dataset)
        if settings.hold_on == "device" and device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if needed > free / 2:
                raise InputError(
                    f"{len(dataset)} images of {settings.side} px take {needed / 2**30:.1f} GiB, more than half "
                    "of the device's free memory: set images.hold_on=host, or a smaller images.side"
                )
        cache = preload(ImageRows(dataset, settings.side), workers=settings.workers, quiet=quiet)
        readable = np.setdiff1d(np.arange(len(cache)), list(cache.unreadable))
        self.unreadable = len(cache.unreadable)
        if not len(readable):
            raise InputError(f"{settings.source}: none of its images can be read")
        pixels = cache.pixels[torch.from_numpy(readable)] if self.unreadable else cache.pixels
        self.pixels = pixels.to(device) if settings.hold_on == "device" else pixels
        self.labels = None if cache.labels is None else [cache.labels[i] for i in readable]

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, indices: Tensor) -> Tensor:
        """Images (B, 3, side, side) uint8 on the device."""
        return self.pixels[indices.to(self.pixels.device)].to(self.device, non_blocking=True)

    def batches(self, batch_size: int, seen: int, seed: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        """Batches (B, 3, side, side) uint8 without end, after so many images that all processes have taken before.

        Every image comes once an epoch, in an order of that epoch; processes share each step's images out.
        """
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in count():
            first = seen + (step * world_size + rank) * batch_size
            parts = []
            for ordinal in range(first, first + batch_size):
                wanted, index = divmod(ordinal, len(self))
                if wanted != epoch:
                    epoch, order = wanted, torch.randperm(len(self), generator=seeded_generator(seed, wanted))
                parts.append(order[index])
            yield self.at(torch.stack(parts))
