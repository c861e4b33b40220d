"""Throughput of amortized training: where a step's time goes, and what more processes bring."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.benchmark.report import FLOOR_HEADER, Part, floor_cells, spread
from splice_ff.benchmark.timing import Timing, Work, seconds_of, time_in_turn
from splice_ff.benchmark.worker import launch
from splice_ff.images import save_image
from splice_ff.networks.amortized import ImageEncoding
from splice_ff.training.config import TrainingConfig, load_config
from splice_ff.utils.machine import peak_memory
from splice_ff.vit.inputs import ViTInput

if TYPE_CHECKING:
    from splice_ff.training.trainer import Trainer

PICTURES = 32
"""Random ones, for the settings that are used where none are given."""


@contextmanager
def training_settings(
    config: Path | None, overrides: Sequence[str], backbone: str, generator: str, device: torch.device
) -> Iterator[TrainingConfig]:
    """A config file's settings; or those of train/configs/pets-tiny.yaml, small.yaml on a GPU, with random images.

    Raises:
        InputError: the file or an override cannot be used.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if config is None:
            config = folder / "config.yaml"
            config.write_text(DEFAULTS[device.type == "cuda"].format(photos=folder / "photos", output=folder / "run"))
            overrides = [f"backbone.name={backbone}", f"generator.size={generator}", *overrides]
            for i in range(PICTURES):
                save_image(
                    folder / "photos" / "ab"[i % 2] / f"{i}.png", F.interpolate(torch.rand(1, 3, 24, 32), (192, 256))
                )
        own = [f"output={folder / 'run'}", "run.trackers=[]", "distill=null"]
        yield load_config(config, [*overrides, *own])


DEFAULTS = (
    """
output: {output}
data: {{source: {photos}, size: 128, preload: true, workers: 0}}
loss: {{vit_size: 128, crop: 0.9, identity_every: 4}}
optimizer: {{steps: 1000, batch_size: 8}}
""",
    """
output: {output}
data: {{source: {photos}, size: 192, preload: true, workers: 4}}
loss: {{vit_size: 224, crop: 0.85, identity_every: 4}}
optimizer: {{steps: 1000, batch_size: 32}}
""",
)
"""On a CPU, on a GPU."""


def measure_training(
    settings: TrainingConfig, precisions: Sequence[str], repeats: int, device: torch.device, rates: dict[str, float],
    compile: bool = False,
) -> Part:  # fmt: skip
    """Pairs a second, and the shares of a step."""
    header = ("", "precision", "seconds (slowest)", "of the step", "pairs/s", *FLOOR_HEADER, "peak GiB")
    pairs = _pairs_a_step(settings)
    part = Part(f"Training: a step of {pairs} directed pairs, medians of {repeats}", header)
    for precision in precisions:
        for compiled in (False, True) if compile else (False,):
            found = _train(settings, precision, compiled, repeats, device)
            kind = precision + " compiled" * compiled
            timings = {
                name: Timing(tuple(t["seconds"]), t["operations"], rates[precision])
                for name, t in found["timings"].items()
            }
            step = timings["step"]
            row = {"precision": kind, "pairs_per_second": pairs / step.median, "peak": found["peak"]}
            parts = {name: timing.to_dict() for name, timing in timings.items()}
            shares = {name: timing.median / step.median for name, timing in timings.items()}
            shares["waiting for data"] = found["waited"]
            shares["rest"] = 1 - sum(share for name, share in shares.items() if name != "step")
            part.rows.append(row | {"parts": parts, "shares": shares})
            for name, share in shares.items():
                cells = [name, kind, "–", f"{share:.0%}", "–", "–", "–", "–", "–"]
                if timing := timings.get(name):
                    cells[2], cells[5:8] = spread(timing), floor_cells(timing)
                if name == "step":
                    cells[4], cells[8] = f"{pairs / step.median:.2f}", f"{found['peak'] / 2**30:.2f}"
                part.table.append(cells)
    size, vit_size = settings.data.size, settings.loss.vit_size
    part.notes.append(
        f"Images of {size} px, {settings.backbone.name} at {vit_size} px, generator {settings.generator.size}. Steps "
        "run whole, data included; ViT and generator are timed alone, forward and backward, on batches of the same "
        "shape. The rest is what they leave: losses, optimizer, averaging."
    )
    return part


def measure_scaling(
    settings: TrainingConfig, counts: Sequence[int], precision: str, repeats: int, device: torch.device
) -> Part:
    """Training on several processes, each with the same batch; on a CPU each with its share of the threads."""
    threads = max(1, torch.get_num_threads() // max(counts)) if device.type == "cpu" else torch.get_num_threads()
    header = ("processes", "threads each", "seconds a step (slowest)", "pairs/s", "efficiency")
    part = Part(f"Training on several processes: {precision}, medians of {repeats}", header)
    for count in counts:
        found = _train(settings, precision, False, repeats, device, count, threads)
        step = Timing(tuple(found["timings"]["step"]["seconds"]), 0, 1)
        speed = count * _pairs_a_step(settings) / step.median
        first = part.rows[0] if part.rows else {"pairs_per_second": speed, "processes": count}
        efficiency = speed / count / (first["pairs_per_second"] / first["processes"])
        part.rows.append(
            {"processes": count, "threads": threads, "pairs_per_second": speed, "efficiency": efficiency,
             "seconds": list(step.seconds), "median": step.median, "slowest": max(step.seconds)}
        )  # fmt: skip
        part.table.append([str(count), str(threads), spread(step), f"{speed:.2f}", f"{efficiency:.0%}"])
    part.notes.append(f"efficiency: pairs a second and process, of those with {counts[0]}.")
    return part


def _pairs_a_step(settings: TrainingConfig) -> int:
    """Of one process; each pair goes both ways."""
    return 2 * settings.optimizer.batch_size * settings.optimizer.gradient_accumulation_steps


def _train(
    settings: TrainingConfig, precision: str, compile: bool, repeats: int, device: torch.device, processes: int = 1,
    threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    run = settings.run.model_copy(update={"precision": precision, "compile": compile})
    config = settings.model_copy(update={"run": run}).model_dump(mode="json")
    return launch("training", {"config": config, "repeats": repeats}, device, processes, threads)


def train_some_steps(config: dict[str, Any], repeats: int, device: str) -> dict[str, Any]:
    """Seconds and operations of training steps in this process, and of a step's parts where it is the only one.

    accelerate chooses among devices of the kind given.
    """
    from splice_ff.training.trainer import Trainer  # here, because accelerate is slow to import

    settings = TrainingConfig.model_validate(config)
    trainer = Trainer(settings, quiet=True)
    batches = trainer.data.batches(0)
    waits = []

    def step() -> None:
        before = trainer.log.waited
        trainer.step(batches)
        waits.append(trainer.log.waited - before)

    if trainer.accelerator.num_processes > 1:
        seconds = [seconds_of(step, trainer.device) for _ in range(repeats + 1)][1:]
        return {"timings": {"step": {"seconds": seconds, "operations": 0}}, "peak": peak_memory(trainer.device)}
    works = {"step": step, **_parts(trainer)}
    timings = time_in_turn(works, repeats, trainer.device, dict.fromkeys(works, 1.0), again=settings.run.compile)
    return {
        "timings": {name: {"seconds": t.seconds, "operations": t.operations} for name, t in timings.items()},
        "waited": sum(waits[-repeats:]) / sum(timings["step"].seconds),
        "peak": peak_memory(trainer.device),
    }


def _parts(trainer: Trainer) -> dict[str, Work]:
    """A step's passes through the ViT, and through the generator, each forward and backward, on made-up batches."""
    settings = trainer.config
    count, side = 2 * settings.optimizer.batch_size, settings.data.size
    again = -(-settings.optimizer.batch_size // settings.loss.identity_every)
    images = torch.rand(count + again, 3, side, side, device=trainer.device)

    def resize(images: Tensor) -> Tensor:
        return ViTInput(settings.loss.vit_size).resize(images, trainer.backbone.patch_size)

    @torch.no_grad()
    def encode_images(images: Tensor) -> ImageEncoding:
        return trainer.generator.encode_images(trainer.backbone, resize(images))

    def vit() -> None:
        for _ in range(settings.optimizer.gradient_accumulation_steps):
            with trainer.accelerator.autocast():
                for _ in range(1 + (settings.loss.crop < 1)):
                    encode_images(images[:count])
                painted = images.clone().requires_grad_()
                made = trainer.backbone(resize(painted), cls=True, keys=[-1])
                assert made.cls is not None
                (made.cls.float().mean() + made.keys[trainer.backbone.depth - 1].float().mean()).backward()

    with trainer.accelerator.autocast():
        encoding = encode_images(images)

    def generator() -> None:
        for _ in range(settings.optimizer.gradient_accumulation_steps):
            with trainer.accelerator.autocast():
                trainer.generator(images, encoding.structure_features, encoding.cls, encoding.patches).mean().backward()
        trainer.adam.zero_grad()

    return {"ViT": vit, "generator": generator}
