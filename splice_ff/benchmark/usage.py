"""A one-shot model as it is used: images in memory to an image, at the default working size, and refined."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.benchmark.fresh_process import in_fresh_process
from splice_ff.benchmark.models import make_one_shot
from splice_ff.benchmark.report import Part
from splice_ff.benchmark.timing import seconds_of
from splice_ff.one_shot.refine import refine
from splice_ff.utils.machine import peak_memory

APPEARANCE = (384, 512)
"""Height and width of the appearance image in pixels."""


def measure_usage(
    one_shot: dict[str, Any], images: Sequence[tuple[int, int]], refined_at: Sequence[int], steps: int, repeats: int,
    device: torch.device,
) -> Part:  # fmt: skip
    """Seconds a pair, and peak memory of fresh processes.

    Args:
        one_shot: `backbone`, `generator` and `checkpoint` of `make_one_shot`.
        images: heights and widths of structure images for one shot, in pixels.
        refined_at: working sizes at which an image of the first of these sizes is refined.
        steps: of refining.
        repeats: rounds of one shot, of which the median is shown; refining is timed once.
        device: where to compute.
    """
    header = ("what", "image", "working size", "seconds (slowest)", "before", "peak")
    part = Part("As used: seconds a pair, and GiB of fresh processes", header)
    works: list[tuple[str, tuple[int, int], int | None, int]] = [
        *(("one shot", image, None, 0) for image in images),
        *((f"{steps} refining steps", images[0], size, steps) for size in refined_at),
    ]
    for what, (height, width), size, count in works:
        found = in_fresh_process(
            use, device=device, **one_shot, height=height, width=width, size=size, steps=count, repeats=repeats
        )
        part.rows.append({"what": what, "image": f"{width}x{height}", **found})
        seconds = f"{statistics.median(found['seconds']):.3g} ({max(found['seconds']):.3g})"
        before, peak = (f"{found[k] / 2**30:.2f}" for k in ("before", "peak"))
        part.table.append([what, f"{width}x{height}", str(found["size"]), seconds, before, peak])
    part.notes.append(
        f"From images in memory. One shot: median of {repeats}, after one that is not counted. Refining: once, with "
        "what comes before and after its steps. before: the model and both images."
    )
    return part


def use(
    backbone: str, generator: str, checkpoint: str | None, height: int, width: int, size: int | None, steps: int,
    repeats: int, device: str,
) -> dict[str, Any]:  # fmt: skip
    """Seconds of each round, the working size, and bytes before and at the peak, of this process."""
    model = make_one_shot(backbone, generator, checkpoint).to(device)
    structure, appearance = (_smooth(*shape).to(device) for shape in ((height, width), APPEARANCE))
    before = peak_memory(model.device)

    def work() -> None:
        if steps:
            refine(model, structure, appearance, steps=steps, size=size)
        else:
            model(structure, appearance, size=size, output_type="pt")

    seconds = [seconds_of(work, model.device) for _ in range(1 if steps else repeats + 1)]
    return {
        "seconds": seconds if steps else seconds[1:], "size": size or model.config.size, "before": before,
        "peak": peak_memory(model.device),
    }  # fmt: skip


def _smooth(height: int, width: int) -> Tensor:
    """Random colors, as smooth as a photograph's, (1, 3, height, width) in [0, 1]."""
    small = torch.rand(1, 3, 9, 16, generator=torch.Generator().manual_seed(0))
    return F.interpolate(small, (height, width), mode="bilinear")
