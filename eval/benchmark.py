"""How long a per-pair step takes, beside the naive one in the same run, and how much memory.

    python -m eval.benchmark step
    python -m eval.benchmark memory --backbone dino_vitb8

Backbones have their official sizes and random weights: speed does not depend on the values.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer

from eval.naive import naive_step
from splice_ff.backbone import ViTFeatures
from splice_ff.losses import SpliceLoss
from splice_ff.pair import default_device, make_recipe
from splice_ff.pair_optimizer import PairOptimizer
from splice_ff.precision import matmul_rate
from splice_ff.presets import PRESETS
from splice_ff.weights import BACKBONES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def step(
    backbone: Annotated[list[str] | None, typer.Option(help="Repeat for several.")] = None,
    size: Annotated[int, typer.Option(help="Side of the square pictures in pixels.")] = 256,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Seconds a step: naive, the paper recipe (new targets at every step) and fast's, in float32 and bfloat16."""
    device = default_device()
    machine = describe_machine(device)
    typer.echo(f"{machine['cpu']}, {machine['threads']} threads, {device}, torch {machine['torch']}")
    typer.echo(f"matrix products: {machine['fp32_gflops']:.0f} GFLOP/s float32, {machine['bf16_gflops']:.0f} bfloat16")
    typer.echo(f"{size}x{size} px, medians of {repeats} (slowest), ratio = median of naive / ours in turn\n")
    typer.echo(f"{'backbone':12} {'naive':>15}" + "".join(f"{name:>28}" for name in OURS))
    rows = []
    for name in backbone or ("dino_vits16", "dino_vits8", "dino_vitb8"):
        seconds = _time_in_turn(_steps(name, size, device), repeats, device)
        row: dict[str, Any] = {"backbone": name, "seconds": seconds, "ratio": {}}
        text = f"{name:12} {_cell(seconds['naive']):>15}"
        for ours in OURS:
            ratio = statistics.median(n / o for n, o in zip(seconds["naive"], seconds[ours], strict=True))
            row["ratio"][ours] = ratio
            text += f"{_cell(seconds[ours]) + f' {ratio:5.2f}x':>28}"
        typer.echo(text)
        rows.append(row)
    if output:
        output.write_text(json.dumps({"machine": machine, "size": size, "rows": rows}, indent=1))


@app.command()
def memory(
    backbone: str = "dino_vitb8", height: int = 360, width: int = 480, precision: str = "fp32", steps: int = 2
) -> None:
    """Peak resident memory of a fresh process that takes steps with the ViT seeing the whole height x width."""
    arguments = [backbone, str(height), str(width), precision, str(steps)]
    subprocess.run([sys.executable, "-m", "eval.benchmark", "memory-of-this-process", *arguments], check=True)


@app.command(hidden=True)
def memory_of_this_process(backbone: str, height: int, width: int, precision: str, steps: int) -> None:
    """What `memory` runs."""
    torch.manual_seed(0)
    recipe = replace(make_recipe("paper", precision=precision), whole_every=1)  # whole pictures: not cropped square
    structure, appearance = torch.rand(2, 1, 3, height, width)
    run = PairOptimizer(structure, appearance, _random_backbone(backbone), recipe)
    run.loss = SpliceLoss(run.loss.backbone, size=min(height, width))
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        structure_target, appearance_target = run.loss.targets(run.structure, run.appearance)
    run.whole_structure = replace(run.whole_structure, target=structure_target)
    run.whole_appearance = replace(run.whole_appearance, target=appearance_target)
    tokens = (height // run.loss.backbone.patch_size[0]) * (width // run.loss.backbone.patch_size[1]) + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for _ in range(steps):
        run.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    typer.echo(
        f"{backbone}, {height}x{width} px, {tokens} tokens, {precision}: peak {peak / 2**20:.2f} GiB resident "
        f"({before / 2**20:.2f} before the first step), {(time.perf_counter() - start) / steps:.1f} s a step"
    )


OURS = ("paper fp32", "paper bf16", "fast fp32", "fast bf16")


def _steps(name: str, size: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The naive step and ours by column."""
    torch.manual_seed(0)
    structure, appearance = torch.rand(2, 1, 3, size, size)
    backbone = _random_backbone(name)
    naive_vit = timm.create_model(BACKBONES[name].timm_name, num_classes=0).to(device)
    steps: dict[str, Callable[[], Any]] = {
        "naive": naive_step(naive_vit, backbone.to(device), structure.to(device), appearance.to(device))
    }
    for column in OURS:
        preset, precision = column.split()
        # Every step alike: no whole-picture turns, no copying, and the identity loss at each.
        views = min(PRESETS[preset].views, 2)
        recipe = make_recipe(
            preset, precision=precision, copy_steps=0, whole_every=10**9, identity_every=1, views=views
        )
        recipe = replace(recipe, size=None)
        run = PairOptimizer(structure, appearance, backbone, recipe, device=device)
        run.step_count = 1
        steps[column] = run.step
    return steps


def _random_backbone(name: str) -> ViTFeatures:
    return ViTFeatures(timm.create_model(BACKBONES[name].timm_name, num_classes=0), spec=BACKBONES[name])


def _time_in_turn(steps: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each, in turn, so that a drift in speed meets all alike; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def _cell(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({max(seconds):.3f})"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "fp32_gflops": matmul_rate(device, torch.float32) / 1e9,
        "bf16_gflops": matmul_rate(device, torch.bfloat16) / 1e9,
    }


if __name__ == "__main__":
    app()
