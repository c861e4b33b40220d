"""What a stage says of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from splice_ff.training.run_log import RunLog
from splice_ff.utils.machine import peak_memory


class StageLog(RunLog):
    """Means of the losses since the last line, throughput and memory.

    Losses are summed on their device: reading them at every step would make a GPU wait.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, trackers: bool) -> None:
        super().__init__(folder, accelerator, trackers)
        self._restart()

    def _restart(self) -> None:
        self.steps = self.pictures = 0
        self.sums: dict[str, Tensor] = {}
        self.since = time.perf_counter()

    def add(self, losses: Mapping[str, Tensor], pictures: int) -> None:
        """Note a step: scalar losses, and this process's images."""
        self.steps, self.pictures = self.steps + 1, self.pictures + pictures
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()

    def write(self, step: int, **values: float) -> dict[str, float]:
        """A line for the steps since the last one; every process must call this."""
        sums = torch.stack(list(self.sums.values())) / self.steps
        means = dict(zip(self.sums, self.accelerator.reduce(sums, "mean").tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        speed = self.pictures * self.accelerator.num_processes / seconds
        memory = peak_memory(self.accelerator.device) / 2**30
        self.put(step, "train", {**means, **values, "pictures_per_second": speed, "memory_gib": memory})
        self._restart()
        return means
