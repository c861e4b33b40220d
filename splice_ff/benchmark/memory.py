"""Peak memory of fresh processes: the CUDA allocator's, or what was resident."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from splice_ff.benchmark.fresh_process import in_fresh_process
from splice_ff.benchmark.models import make_backbone, make_one_shot
from splice_ff.benchmark.report import Part
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import make_recipe
from splice_ff.utils.machine import peak_memory
from splice_ff.vit.inputs import PUBLISHED


def measure_memory(
    backbones: Sequence[str], sizes: Sequence[int], precisions: Sequence[str], one_shot: dict[str, Any],
    one_shot_sizes: Sequence[int], device: torch.device,
) -> Part:  # fmt: skip
    """Peak memory of per-pair steps on whole 3:4 images, and of one shot on square ones."""
    kind = "allocated on the GPU" if device.type == "cuda" else "resident"
    part = Part(f"Peak memory: GiB {kind}, of fresh processes", ("what", "images", "precision", "before", "peak"))
    works: list[tuple[str, str, Callable[..., dict[str, Any]], dict[str, Any]]] = [
        (f"step, {backbone}", f"{size}x{size * 4 // 3}", memory_of_steps, {"backbone": backbone, "size": size})
        for backbone in backbones
        for size in sizes
    ]
    works += [
        (f"one shot, {one_shot['checkpoint'] or one_shot['generator']}", f"{size}x{size}", memory_of_one_shot,
         {**one_shot, "size": size})
        for size in one_shot_sizes
    ]  # fmt: skip
    for what, images, work, arguments in works:
        for precision in precisions:
            found = in_fresh_process(work, device=device, precision=precision, **arguments)
            part.rows.append({"what": what, "images": images, "precision": precision, **found})
            before, peak = (f"{found[k] / 2**30:.2f}" for k in ("before", "peak"))
            part.table.append([what, images, precision, before, peak])
    part.notes.append(
        "step: the `paper` recipe on crops and on whole images, which the ViT sees at their size. before: networks "
        "loaded, targets encoded."
    )
    return part


def memory_of_steps(backbone: str, size: int, precision: str, device: str) -> dict[str, Any]:
    """Bytes before and at the peak of a per-pair step in this process, the ViT seeing all of size x 4/3 size pixels."""
    torch.manual_seed(0)
    recipe = replace(
        make_recipe("paper", precision=precision), whole_every=1, cls_warmup=0, vit_input=replace(PUBLISHED, size=size)
    )
    structure, appearance = torch.rand(2, 1, 3, size, size * 4 // 3)
    run = PairOptimizer(structure, appearance, make_backbone(backbone), recipe, device=device)
    before = peak_memory(run.device)
    run.step()
    return {"before": before, "peak": peak_memory(run.device)}


def memory_of_one_shot(
    backbone: str, generator: str, checkpoint: str | None, size: int, precision: str, device: str
) -> dict[str, Any]:
    """Bytes before and at the peak of one shot on size x size pixels in this process, worked at in full."""
    model = make_one_shot(backbone, generator, checkpoint).to(device)
    structure, appearance = torch.rand(2, 1, 3, size, size)
    before = peak_memory(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        model.paint(structure, model.embed(appearance), size=size)
    return {"before": before, "peak": peak_memory(model.device)}
