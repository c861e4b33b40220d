"""What a stage says of itself: lines of JSON, accelerate's trackers, messages."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm


class StageLog:
    """Means of the losses since the last line, throughput and memory.

    Losses are summed on their device: reading them at every step would make a GPU wait.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, trackers: bool) -> None:
        self.folder, self.accelerator = folder, accelerator
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        if trackers:
            accelerator.init_trackers("log")
        self._restart()

    def _restart(self) -> None:
        self.steps = self.pictures = 0
        self.sums: dict[str, Tensor] = {}
        self.since = time.perf_counter()

    def add(self, losses: Mapping[str, Tensor], pictures: int) -> None:
        """Note a step: scalar losses, and this process's pictures."""
        self.steps, self.pictures = self.steps + 1, self.pictures + pictures
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()

    def write(self, step: int, **values: float) -> dict[str, float]:
        """A line for the steps since the last one; every process must call this."""
        sums = torch.stack(list(self.sums.values())) / self.steps
        means = dict(zip(self.sums, self.accelerator.reduce(sums, "mean").tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        line = {**means, **values, "pictures_per_second": self.pictures * self.accelerator.num_processes / seconds}
        if self.accelerator.device.type == "cuda":
            line["memory_gib"] = torch.cuda.max_memory_allocated(self.accelerator.device) / 2**30
        self.put(step, "train", line)
        self._restart()
        return means

    def put(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """A line of some kind."""
        self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")

    def say(self, message: str) -> None:
        """A line for the reader, from the main process."""
        if self.accelerator.is_main_process:
            tqdm.write(message)
