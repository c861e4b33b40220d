"""Throughput of training, and where its time goes.

    python -m eval.training train/configs/pets-tiny.yaml optimizer.batch_size=8 data.split="train[:1%]"

Whole steps are timed as they run, data included. Then the parts of such a step, each alone on batches of the same
shape: all passes through the ViT, and the generator forward and backward. What they leave is the rest: optimiser,
averaging, bookkeeping.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from eval.benchmark import describe_machine
from splice_ff.generators.amortized import Condition
from splice_ff.losses import resize_for_vit
from splice_ff.training import Trainer
from splice_ff.training_config import load_config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def run(
    config: Path,
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 10,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Pairs a second, and the shares of ViT, generator, waiting for data, and the rest."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_config(config, [*(overrides or ()), f"output={folder}", "run.trackers=[]", "distill=null"])
        trainer = Trainer(settings, quiet=True)
        batches = trainer.data.batches(0)
        trainer.step(batches)  # kernels are set up
        trainer.log.waited = 0.0
        steps = [_seconds(lambda: trainer.step(batches), trainer.device) for _ in range(repeats)]
        waited = trainer.log.waited / sum(steps)
    step = statistics.median(steps)
    accumulation = settings.optimizer.accumulation
    vit, generator = (accumulation * statistics.median(times) for times in _parts(trainer, repeats))
    pairs = 2 * settings.optimizer.batch_size * accumulation
    figures = {
        "machine": describe_machine(trainer.device),
        "pairs_per_second": pairs / step,
        "step_seconds": {"median": step, "slowest": max(steps)},
        "shares": {"vit": vit / step, "generator": generator / step, "data": waited},
        "parts_seconds": {"vit": vit, "generator": generator},
    }
    typer.echo(f"{pairs} directed pairs a step of {settings.data.size} px, ViT at {settings.loss.vit_size} px")
    typer.echo(f"step {step:.3f} s (slowest {max(steps):.3f}): {pairs / step:.1f} pairs/s")
    typer.echo(f"ViT {vit / step:.0%}, generator {generator / step:.0%}, waiting for data {waited:.1%}")
    if output:
        output.write_text(json.dumps(figures, indent=1))


def _parts(trainer: Trainer, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of a batch's passes through the ViT, and of its generator passes, each forward and backward."""
    settings = trainer.config
    count, side = 2 * settings.optimizer.batch_size, settings.data.size
    again = -(-settings.optimizer.batch_size // settings.loss.identity_every)
    images = torch.rand(count + again, 3, side, side, device=trainer.device)

    @torch.no_grad()
    def observe(images: Tensor) -> Condition:
        return trainer.generator.observe(trainer.backbone, resize_for_vit(images, settings.loss.vit_size))

    seen = observe(images)

    def vit() -> None:
        with trainer.accelerator.autocast():
            for _ in range(1 + (settings.loss.crop < 1)):
                observe(images[:count])
            painted = images.clone().requires_grad_()
            inputs = resize_for_vit(painted, settings.loss.vit_size)
            made = trainer.backbone(inputs, cls=True, keys=[-1])
            assert made.cls is not None
            (made.cls.float().mean() + made.keys[trainer.backbone.depth - 1].float().mean()).backward()

    def generator() -> None:
        with trainer.accelerator.autocast():
            trainer.generator(images, seen.semantics, seen.cls, seen.patches).mean().backward()

    times = ([_seconds(part, trainer.device) for _ in range(repeats + 1)][1:] for part in (vit, generator))
    vit_times, generator_times = times
    trainer.adam.zero_grad()
    return vit_times, generator_times


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    app()
