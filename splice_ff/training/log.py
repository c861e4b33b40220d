"""What a training run says of itself: lines of JSON in its folder, accelerate's trackers, messages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from splice_ff.errors import InputError
from splice_ff.images import save_image
from splice_ff.utils.files import reason, write_file
from splice_ff.utils.machine import peak_memory


class RunLog:
    """Means of the losses since the last line, throughput, memory, and the share of time spent waiting for data.

    Values are summed on their device: reading them at every step would make a GPU wait. Only the main process writes,
    whoever calls.

    Args:
        folder: for `log.jsonl`.
        accelerator: whose trackers get the values too.
        unit: what a step is made of, in the plural: "pairs".
        quiet: no messages.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, unit: str, quiet: bool = False) -> None:
        self.file, self.accelerator, self.unit, self.quiet = folder / "log.jsonl", accelerator, unit, quiet
        self.skipped_images = 0
        """Images that could not be read so far, of all processes."""
        self.means: dict[str, float] = {}
        """Of the last line."""
        self.waited = 0.0
        self._restart()

    def open(self, step: int) -> None:
        """Begin to write, after so many steps: lines of later ones, which an interrupted run left, are removed.

        Raises:
            InputError: the folder takes no files.
        """
        if self.accelerator.is_main_process and self.file.exists():
            with self._errors():
                lines = self.file.read_text("utf-8", "replace").splitlines()
                text = "".join(f"{line}\n" for line in lines if _is_by(line, step))
                write_file(self.file, text.encode())
        if self.accelerator.log_with:
            self.accelerator.init_trackers("log")
        self._restart()

    def _restart(self) -> None:
        self.steps = self.count = self.skipped = 0
        self.sums: dict[str, Tensor | float] = {}
        self.waited_before, self.since = self.waited, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, values: Mapping[str, Tensor | float], count: int, skipped: int = 0) -> None:
        """Note a step of this process: scalars, how many pairs or images, and images that could not be read."""
        self.steps, self.count, self.skipped = self.steps + 1, self.count + count, self.skipped + skipped
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self, step: int, **values: float) -> None:
        """A line for the steps since the last one; every process must call this."""
        device = self.accelerator.device
        sums = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in self.sums.values()]
        counts = torch.tensor([self.count, self.skipped], dtype=torch.float32, device=device)
        *totals, count, skipped = self.accelerator.reduce(torch.cat([torch.stack(sums), counts]), "sum").tolist()
        taken = self.steps * self.accelerator.num_processes
        self.means = {name: total / taken for name, total in zip(self.sums, totals, strict=True)}
        self.skipped_images += round(skipped)
        seconds = time.perf_counter() - self.since
        line = {
            **self.means,
            **values,
            f"{self.unit}_per_second": count / seconds,
            "share_waiting_for_data": (self.waited - self.waited_before) / seconds,
            "memory_gib": peak_memory(device) / 2**30,
            "skipped_images": self.skipped_images,
        }
        self.put(step, "train", line)
        self._restart()

    def put(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write a line of the log.

        Raises:
            InputError: the file cannot be written.
        """
        self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)
        if self.accelerator.is_main_process:
            with self._errors():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")

    def say(self, message: str) -> None:
        """A line for the reader."""
        if self.accelerator.is_main_process and not self.quiet:
            tqdm.write(message)

    def samples(self, step: int, *columns: Tensor) -> None:
        """Images (B, 3, S, S) side by side, a row for each, in a file and in TensorBoard.

        Other trackers want other shapes: they get curves.
        """
        images = torch.stack(columns, 1).flatten(0, 1).float().cpu()
        grid = make_grid(images, nrow=len(columns), padding=2, pad_value=1.0)[None]
        save_image(self.file.parent / "samples" / f"step-{step:08d}.png", grid)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": grid.numpy()}, step=step)

    def close(self) -> None:
        """Let the trackers finish. Not `end_training`, which would part the processes."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.file}: cannot be written ({reason(error)})") from error


def _is_by(line: str, step: int) -> bool:
    """Whether a line of the log is whole, and of a step up to this one."""
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
