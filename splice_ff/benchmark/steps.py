"""The per-pair step beside a naive one, in the same run."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from splice_ff.benchmark.models import check_plain, make_backbone
from splice_ff.benchmark.naive import naive_step
from splice_ff.benchmark.report import FLOOR_HEADER, Part, floor_cells, spread
from splice_ff.benchmark.timing import Work, time_in_turn
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import PRESETS, make_recipe
from splice_ff.vit.spec import VIT_SIZE


def measure_steps(
    backbones: Sequence[str], sizes: Sequence[int], precisions: Sequence[str], repeats: int,
    device: torch.device, rates: dict[str, float], compile: bool = False,
) -> Part:  # fmt: skip
    """Seconds a step of the naive way, of the `paper` recipe (new targets at every step) and of `fast`.

    Raises:
        InputError: a backbone that is not known, or that the naive step cannot use.
    """
    header = ("backbone", "px", "step", "seconds (slowest)", "naive/this", *FLOOR_HEADER)
    part = Part(f"Per-pair step: seconds, medians of {repeats}", header)
    for name in backbones:
        for size in sizes:
            works = step_works(name, size, precisions, device, compile)
            kinds = {step: step.split()[1] for step in works}
            timings = time_in_turn(
                works, repeats, device, {step: rates[kind] for step, kind in kinds.items()}, again=compile
            )
            naive = timings["naive fp32"]
            for step, timing in timings.items():
                times = statistics.median(n / t for n, t in zip(naive.seconds, timing.seconds, strict=True))
                part.rows.append(
                    {"backbone": name, "size": size, "step": step, **timing.to_dict(), "naive_over_this": times}
                )
                cells = [name, str(size), step, spread(timing), f"{times:.2f}x", *floor_cells(timing)]
                part.table.append(cells)
    part.notes.append("naive/this: medians of the ratios, round by round. Weights are random, sizes are real.")
    return part


def step_works(
    name: str, size: int, precisions: Sequence[str], device: torch.device, compile: bool = False
) -> dict[str, Work]:
    """The naive step and ours, by name ("paper bf16") on random images of size x size."""
    torch.manual_seed(0)
    structure, appearance = torch.rand(2, 1, 3, size, size)
    backbone = make_backbone(name)
    check_plain(backbone)
    vit = copy.deepcopy(backbone.vit)
    vit.set_input_size((VIT_SIZE, VIT_SIZE))
    naive = naive_step(vit.to(device), backbone.to(device), structure.to(device), appearance.to(device))
    works: dict[str, Work] = {"naive fp32": naive}
    for preset in PRESETS:
        for precision in precisions:
            # Every step alike: without the turns of the whole image, without copying, the identity loss at each.
            views = min(PRESETS[preset].views, 2)
            recipe = make_recipe(
                preset, precision=precision, copy_steps=0, whole_every=10**9, identity_every=1, views=views
            )
            recipe = replace(recipe, size=None)
            for compiled in (False, True) if compile else (False,):
                run = PairOptimizer(structure, appearance, backbone, recipe, device=device, compile=compiled)
                run.step()  # the first one sees the whole image besides
                works[f"{preset} {precision}{' compiled' * compiled}"] = run.step
    return works
