"""What a training run says of itself: a JSONL file, accelerate's trackers, images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from torchvision.utils import make_grid

from splice_ff.images import save_image
from splice_ff.training.config import TrainingConfig
from splice_ff.training.run_log import RunLog
from splice_ff.utils.machine import peak_memory


class TrainingLog(RunLog):
    """Means of the losses since the last line, throughput, memory, and the share of time spent waiting for data."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        super().__init__(config.output, accelerator, bool(config.run.trackers))
        self.skipped_images = 0
        self._restart()

    def _restart(self) -> None:
        self.steps = self.pairs = 0
        self.sums: dict[str, float] = {}
        self.waited = 0.0
        self.since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def count(self, pairs: int, skipped: int) -> None:
        """Note a batch of this process: its pairs, and images that could not be read."""
        self.pairs += pairs
        self.skipped_images += skipped

    def add(self, losses: dict[str, float]) -> None:
        """Note a step."""
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self, step: int, **counters: int) -> None:
        """A line for the steps since the last one."""
        seconds = time.perf_counter() - self.since
        line = {name: value / self.steps for name, value in self.sums.items()} | {
            "pairs_per_second": self.pairs * self.accelerator.num_processes / seconds,
            "share_waiting_for_data": self.waited / seconds,
            "memory_gib": peak_memory(self.accelerator.device) / 2**30,
            "skipped_images": self.skipped_images,
            **counters,
        }
        self.put(step, "train", line)
        self._restart()

    def write_validation(self, step: int, losses: dict[str, float]) -> None:
        """A line for the held-out pairs."""
        self.put(step, "validation", losses)
        self.say(f"step {step}: held-out total {losses['total']:.4f}, {losses['gap_left']:.2f} of copying's")

    def picture(self, step: int, picture: Tensor) -> None:
        """An image (1, 3, H, W), in a file and in TensorBoard; other trackers want other shapes: they get curves."""
        (self.folder / "samples").mkdir(exist_ok=True)
        save_image(self.folder / "samples" / f"step-{step:08d}.png", picture)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": picture.cpu().numpy()}, step=step)

    def close(self) -> None:
        """Let the trackers finish."""
        self.accelerator.end_training()


def picture_grid(*columns: Tensor) -> Tensor:
    """Batches (B, 3, S, S) side by side, a row for each of their images: (1, 3, H, W)."""
    images = torch.stack(columns, 1).flatten(0, 1)
    return make_grid(images.float().cpu(), nrow=len(columns), padding=2, pad_value=1.0)[None]
