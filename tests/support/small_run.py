"""A training run of milliseconds: a linear map, on the loop that both trainers use."""

import json
import multiprocessing
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from splice_ff.training.config_sections import OptimizerSection, RunSection
from splice_ff.training.runtime import TrainingLoop, own_folder
from splice_ff.utils.averaging import move_average
from splice_ff.utils.seeding import seeded_generator


class SmallRun:
    """Learns a fixed linear map from data that depends on what has been seen, with dropout from torch's generator."""

    def __init__(self, folder: Path, steps=40, every=10, pause=0.0, accelerator=None, scale=1.0, **optimizer):
        torch.manual_seed(0)
        self.folder, self.pause, self.scale = folder, pause, scale
        settings = {"learning_rate": 0.01, "warmup_steps": 2, "batch_size": 4, "max_grad_norm": 1.0, **optimizer}
        self.optimizer = OptimizerSection(steps=steps, **settings)
        self.model, self.average = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8).requires_grad_(False)
        adam = torch.optim.AdamW(self.model.parameters(), lr=0.01, fused=True)
        self.accelerator = accelerator or Accelerator(cpu=True)
        self.said = []
        self.loop = TrainingLoop(
            folder, self.accelerator, {"model": self.model, "average": self.average}, adam, self.optimizer,
            RunSection(log_every=1, trackers=()), unit="pairs", checkpoint_every=every, quiet=True,
        )  # fmt: skip
        self.loop.log.say = self.said.append

    def run(self, noted=()):
        with own_folder(
            self.accelerator, self.folder, {"optimizer": self.optimizer.model_dump()}, fixed=(),
            is_started=any(self.folder.glob("checkpoints/step-*")), say=self.said.append,
        ):  # fmt: skip
            self.loop.resume()
            for _ in self.loop.steps(noted):
                self.step()
        return self

    def step(self):
        time.sleep(self.pause)
        self.loop.set_learning_rate()
        random = seeded_generator(7, self.loop.progress.seen)
        data = torch.randn(self.optimizer.batch_size, 8, generator=random)
        total = (F.dropout(self.loop.model(data), 0.1) - data.flip(1)).square().mean() * self.scale
        total.backward()
        if self.loop.clip_gradients(total):
            self.loop.adam.step()
            move_average(self.average, self.model, 0.9)
        self.loop.end_step({"total": total}, len(data))

    @property
    def weights(self):
        return torch.cat([p.detach().flatten() for m in (self.model, self.average) for p in m.parameters()])


def curve(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and rate of every line of a log, in its order."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["total"], line["learning_rate"]) for line in lines]


def in_processes():
    """Processes that have torch imported already, and can be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.small_run"])
    return context


def run_small(folder, options):
    """`SmallRun(folder, **options).run()`, for another process."""
    torch.set_num_threads(1)
    SmallRun(folder, **options).run()
