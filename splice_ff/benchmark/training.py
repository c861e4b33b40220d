"""Throughput of amortized training: where a step's time goes, and what more processes bring."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from splice_ff.benchmark.fresh_process import in_fresh_process
from splice_ff.benchmark.report import FLOOR_HEADER, Part, floor_cells, spread
from splice_ff.benchmark.timing import Sections, Timing, seconds_of
from splice_ff.images import save_image
from splice_ff.training.config import TrainingConfig, load_config
from splice_ff.utils.machine import peak_memory

IMAGES = 32
"""Random ones, for the settings that are used where none are given."""


@contextmanager
def training_settings(
    config: Path | None, overrides: Sequence[str], backbone: str, generator: str, device: torch.device
) -> Iterator[TrainingConfig]:
    """A config file's settings; or `DEFAULTS`, with random images.

    Raises:
        InputError: the file or an override cannot be used.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if config is None:
            config = folder / "config.yaml"
            config.write_text(DEFAULTS[device.type == "cuda"].format(photos=folder / "photos", output=folder / "run"))
            overrides = [f"backbone.name={backbone}", f"generator.size={generator}", *overrides]
            for i in range(IMAGES):
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
            step = timings["all"]
            speed, peak = pairs / step.median, found["peak"]
            shares = {name: timing.median / step.median for name, timing in timings.items()}
            parts = {name: timing.to_dict() for name, timing in timings.items()}
            part.rows.append(
                {"precision": kind, "pairs_per_second": speed, "peak": peak, "parts": parts, "shares": shares}
            )
            for name, timing in timings.items():
                of_all = [f"{speed:.2f}", f"{peak / 2**30:.2f}"] if timing is step else ["–", "–"]
                part.table.append(
                    [name, kind, spread(timing), f"{shares[name]:.0%}", of_all[0], *floor_cells(timing), of_all[1]]
                )
    size, vit_size = settings.data.size, settings.loss.vit_size
    part.notes.append(
        f"Images of {size} px, {settings.backbone.name} at {vit_size} px, generator {settings.generator.size}. ViT and "
        "generator: their forward passes; backward: through both. The rest: losses, averaging of the weights."
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
        step = Timing(tuple(found["timings"]["all"]["seconds"]), 0, 1)
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
    return in_fresh_process(
        train_some_steps, device=device, processes=processes, threads=threads, config=config, repeats=repeats
    )


def train_some_steps(config: dict[str, Any], repeats: int, device: str) -> dict[str, Any]:
    """Seconds and operations of training steps in this process, and of a step's parts where it is the only one.

    accelerate chooses among devices of the kind given.
    """
    from splice_ff.training.trainer import Trainer  # here, because accelerate is slow to import

    settings = TrainingConfig.model_validate(config)
    trainer = Trainer(settings, quiet=True)
    sections = Sections(trainer.device)
    batches = _each_in(sections, "waiting for data", trainer.data.batches(0))
    if trainer.accelerator.num_processes > 1:
        rounds = [seconds_of(lambda: trainer.step(batches), trainer.device) for _ in range(repeats + 1)]
        return {"timings": {"all": {"seconds": rounds[1:], "operations": 0}}, "peak": peak_memory(trainer.device)}
    trainer.accelerator.backward = _in(sections, "backward", trainer.accelerator.backward)
    trainer.loop.adam.step = _in(sections, "optimizer", trainer.loop.adam.step)
    with sections.watch({"ViT": trainer.backbone, "generator": trainer.generator}):
        timings = sections.time(lambda: trainer.step(batches), repeats, 1.0, again=settings.run.compile)
    return {
        "timings": {name: {"seconds": t.seconds, "operations": t.operations} for name, t in timings.items()},
        "peak": peak_memory(trainer.device),
    }


def _each_in(sections: Sections, name: str, items: Iterator[Any]) -> Iterator[Any]:
    while True:
        with sections(name):
            item = next(items)
        yield item


def _in(sections: Sections, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*arguments: Any, **options: Any) -> Any:
        with sections(name):
            return function(*arguments, **options)

    return inside
