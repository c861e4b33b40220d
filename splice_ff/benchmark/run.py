"""The benchmark's parts, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from splice_ff.benchmark.floor import DTYPES, sensible_precisions
from splice_ff.benchmark.memory import measure_memory
from splice_ff.benchmark.models import check_plain
from splice_ff.benchmark.one_shot import measure_one_shot
from splice_ff.benchmark.plan import PARTS, plan_for
from splice_ff.benchmark.report import Part
from splice_ff.benchmark.steps import measure_steps
from splice_ff.benchmark.training import measure_scaling, measure_training, training_settings
from splice_ff.errors import InputError
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.per_pair.recipes import MIN_SIZE
from splice_ff.vit.spec import BACKBONES, BUNDLED
from splice_ff.vit.weights import load_backbone


@dataclass(frozen=True)
class Wishes:
    """What was asked for in place of the plan's; empty or None: the plan's.

    Raises:
        InputError: a value that cannot be.
    """

    backbones: Sequence[str] = ()
    sizes: Sequence[int] = ()
    batches: Sequence[int] = ()
    precisions: Sequence[str] = ()
    processes: Sequence[int] = ()
    repeats: int | None = None
    generator: str | None = None
    checkpoint: str | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()
    compile: bool = False

    def __post_init__(self) -> None:
        for name in self.precisions:
            if name not in DTYPES:
                raise InputError(f"unknown precision '{name}'. Known: {', '.join(DTYPES)}")
        if self.generator is not None and self.generator not in SIZES:
            raise InputError(f"unknown generator '{self.generator}'. Known: {', '.join(SIZES)}")
        if any(size < MIN_SIZE for size in self.sizes):
            raise InputError(f"size must be at least {MIN_SIZE} pixels, not {min(self.sizes)}")
        repeats = [] if self.repeats is None else [self.repeats]
        for name, counts in (("batch", self.batches), ("processes", self.processes), ("repeats", repeats)):
            if any(count < 1 for count in counts):
                raise InputError(f"{name} must be at least 1, not {min(counts)}")


def check_parts(names: Sequence[str]) -> list[str]:
    """The parts named, all of them for "all" or none, in the order in which they run.

    Raises:
        InputError: an unknown one.
    """
    for name in names:
        if name not in (*PARTS, "all"):
            raise InputError(f"unknown part '{name}'. Known: all, {', '.join(PARTS)}")
    return [part for part in PARTS if not names or "all" in names or part in names]


def check(parts: Sequence[str], wishes: Wishes, device: torch.device) -> None:
    """Find out before long work what cannot be used here.

    Raises:
        InputError: a backbone, a checkpoint, or more processes than GPUs.
    """
    if device.type == "cuda" and max(wishes.processes, default=1) > torch.cuda.device_count():
        raise InputError(f"{max(wishes.processes)} processes need as many GPUs; there are {torch.cuda.device_count()}")
    for name in wishes.backbones:
        if name not in BACKBONES:
            backbone = load_backbone(name)
            if "step" in parts:
                check_plain(backbone)
    if wishes.checkpoint:
        SpliceFF.from_pretrained(wishes.checkpoint)


def run(parts: Sequence[str], wishes: Wishes, device: torch.device, rates: dict[str, float]) -> Iterator[str | Part]:
    """Measure, and yield each part's name before it and what was found after it.

    Raises:
        InputError: a training configuration that cannot be used; the rest is for `check` to find.
    """
    plan = plan_for(device, len(parts))
    repeats = wishes.repeats or plan.repeats
    generator = wishes.generator or plan.generator
    precisions = list(wishes.precisions) or sensible_precisions(rates)
    processes = list(wishes.processes) or list(plan.processes)
    shooters = wishes.backbones or [BUNDLED]
    with ExitStack() as stack:
        if {"training", "scaling"} & set(parts):
            settings = stack.enter_context(
                training_settings(wishes.config, wishes.overrides, BUNDLED, generator, device)
            )
        for part in parts:
            yield part
            if part == "step":
                backbones, sizes = wishes.backbones or plan.step_backbones, wishes.sizes or plan.step_sizes
                yield measure_steps(backbones, sizes, precisions, repeats, device, rates, wishes.compile)
            elif part == "one-shot":
                yield measure_one_shot(
                    shooters, generator, wishes.checkpoint, wishes.sizes or plan.one_shot_sizes,
                    wishes.batches or plan.one_shot_batches, precisions, repeats, device, rates, wishes.compile,
                )  # fmt: skip
            elif part == "training":
                yield measure_training(settings, precisions, repeats, device, rates, wishes.compile)
            elif part == "memory":
                model = {"backbone": shooters[0], "generator": generator, "checkpoint": wishes.checkpoint}
                yield measure_memory(
                    wishes.backbones or plan.memory_backbones, wishes.sizes or plan.memory_sizes,
                    wishes.precisions or plan.memory_precisions, model,
                    wishes.sizes or plan.one_shot_memory_sizes, device,
                )  # fmt: skip
            elif part == "scaling":
                yield measure_scaling(
                    settings, processes, precisions[-1 if device.type == "cuda" else 0], repeats, device
                )
