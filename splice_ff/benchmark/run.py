"""A benchmark from what is asked for to its report; `splice-ff benchmark` calls nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from splice_ff.benchmark.floor import DTYPES, measure_rates, sensible_precisions
from splice_ff.benchmark.memory import measure_memory
from splice_ff.benchmark.models import check_plain
from splice_ff.benchmark.one_shot import measure_one_shot
from splice_ff.benchmark.plan import PARTS, plan_for
from splice_ff.benchmark.report import Part, Report
from splice_ff.benchmark.steps import measure_steps
from splice_ff.benchmark.training import measure_scaling, measure_training, training_settings
from splice_ff.benchmark.usage import measure_usage
from splice_ff.errors import InputError
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.per_pair.recipes import MIN_SIZE
from splice_ff.utils import machine
from splice_ff.utils.extras import need
from splice_ff.utils.files import atomic_write, check_place
from splice_ff.vit.spec import BACKBONES, BUNDLED
from splice_ff.vit.weights import load_backbone


@dataclass(frozen=True)
class Options:
    """What to measure in place of the plan's; empty or None: the plan's.

    Raises:
        InputError: an unknown precision or generator, or a number out of range.
    """

    backbones: Sequence[str] = ()
    """ViTs of step, one-shot, usage and memory: known names (with random weights), or folders."""
    sizes: Sequence[int] = ()
    """Sides of their images in pixels."""
    batches: Sequence[int] = ()
    """Images a shot."""
    precisions: Sequence[str] = ()
    """"fp32", "bf16"."""
    processes: Sequence[int] = ()
    """How many train side by side, in scaling."""
    repeats: int | None = None
    """Rounds, of which the medians are shown."""
    generator: str | None = None
    """Size of the amortized generator with random weights: a key of `SIZES`."""
    model: str | None = None
    """A one-shot model to time instead of it; what `SpliceFF.from_pretrained` takes."""
    config: Path | None = None
    """YAML file of training settings, instead of random images."""
    overrides: Sequence[str] = ()
    """`section.key=value` each, in those."""
    compile: bool = False
    """Time step, one-shot and training compiled as well."""

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


def check(parts: Sequence[str], options: Options, device: torch.device) -> None:
    """Find out before long work what cannot be used here.

    Raises:
        InputError: a backbone, a checkpoint, or more processes than GPUs.
    """
    if {"training", "scaling"} & set(parts):
        need("accelerate", "datasets", extra="train")
    if device.type == "cuda" and max(options.processes, default=1) > torch.cuda.device_count():
        raise InputError(f"{max(options.processes)} processes need as many GPUs; there are {torch.cuda.device_count()}")
    for name in options.backbones:
        if name not in BACKBONES:
            backbone = load_backbone(name)
            if "step" in parts:
                check_plain(backbone)
    if options.model:
        SpliceFF.from_pretrained(options.model)


def benchmark(
    parts: Sequence[str] = (),
    options: Options | None = None,
    *,
    device: torch.device | str | None = None,
    output: Path | None = None,
    command: str | None = None,
    on_heading: Callable[[Report], None] = lambda _: None,
    before_part: Callable[[str], None] = lambda _: None,
    on_part: Callable[[Part], None] = lambda _: None,
) -> Report:
    """Measure speed and memory, beside a naive step and beside what the device's arithmetic allows.

    Args:
        parts: names in `PARTS`; all of them for "all" or none.
        options: what to measure in place of the plan for the device.
        device: where to compute; a GPU by default, if there is one.
        output: a JSON file, written after each part, so that a benchmark that is stopped keeps the others.
        command: what the file names as the way to make it again.
        on_heading: called once the device's rates are known, before the first part.
        before_part, on_part: called before each part with its name, and with what was found.

    Raises:
        InputError: an unknown part, a backbone, a model, a training configuration or a place that cannot be used.
    """
    chosen, options = check_parts(parts), options or Options()
    if output:
        check_place(output)
    device = torch.device(device) if device else machine.default_device()
    check(chosen, options, device)
    rates = measure_rates(device)
    notes = []
    if len(sensible_precisions(rates)) < len(rates):
        notes.append("bf16, emulated here, is measured only if asked for")
    if device.type == "cuda":
        notes.append("float32 convolutions may use TF32, and go below the floor")
    report = Report(command, machine.describe(device), machine.version(), rates, notes)
    on_heading(report)
    for name, measure in _measurements(chosen, options, device, rates):
        before_part(name)
        report.parts[name] = measure()
        on_part(report.parts[name])
        if output:
            atomic_write(output, lambda file: file.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8"))
    return report


def _measurements(
    parts: Sequence[str], options: Options, device: torch.device, rates: dict[str, float]
) -> Iterator[tuple[str, Callable[[], Part]]]:
    """Each part by name, with the function that measures it as the options and the plan say."""
    plan = plan_for(device, len(parts))
    repeats = options.repeats or plan.repeats
    generator = options.generator or plan.generator
    precisions = list(options.precisions) or sensible_precisions(rates)
    one_shot_backbones = options.backbones or [BUNDLED]
    one_shot = {"backbone": one_shot_backbones[0], "generator": generator, "checkpoint": options.model}
    with ExitStack() as stack:
        if {"training", "scaling"} & set(parts):
            settings = stack.enter_context(
                training_settings(options.config, options.overrides, BUNDLED, generator, device)
            )
        every: dict[str, Callable[[], Part]] = {
            "step": lambda: measure_steps(
                options.backbones or plan.step_backbones, options.sizes or plan.step_sizes, precisions, repeats, device,
                rates, options.compile,
            ),
            "one-shot": lambda: measure_one_shot(
                one_shot_backbones, generator, options.model, options.sizes or plan.one_shot_sizes,
                options.batches or plan.one_shot_batches, precisions, repeats, device, rates, options.compile,
            ),
            "usage": lambda: measure_usage(
                one_shot, [(size, size) for size in options.sizes] or plan.usage_images,
                options.sizes or plan.refined_at, plan.refining_steps, repeats, device,
            ),
            "training": lambda: measure_training(settings, precisions, repeats, device, rates, options.compile),
            "memory": lambda: measure_memory(
                options.backbones or plan.memory_backbones, options.sizes or plan.memory_sizes,
                options.precisions or plan.memory_precisions,
                one_shot, options.sizes or plan.one_shot_memory_sizes, device,
            ),
            "scaling": lambda: measure_scaling(
                settings, options.processes or plan.processes, precisions[-1 if device.type == "cuda" else 0], repeats,
                device,
            ),
        }  # fmt: skip
        for part in parts:
            yield part, every[part]
