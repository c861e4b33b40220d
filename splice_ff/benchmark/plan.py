"""What is measured where nothing else is asked for, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

PARTS = ("step", "one-shot", "usage", "training", "memory", "scaling")


@dataclass(frozen=True)
class Plan:
    """Backbones, sizes and repeats of each part."""

    step_backbones: tuple[str, ...]
    step_sizes: tuple[int, ...]
    memory_backbones: tuple[str, ...]
    memory_sizes: tuple[int, ...]
    """Shorter sides of 3:4 images; the other sizes are sides of squares."""
    memory_precisions: tuple[str, ...]
    one_shot_sizes: tuple[int, ...]
    one_shot_batches: tuple[int, ...]
    one_shot_memory_sizes: tuple[int, ...]
    usage_images: tuple[tuple[int, int], ...]
    """Heights and widths."""
    refined_at: tuple[int, ...]
    refining_steps: int
    generator: str
    repeats: int
    processes: tuple[int, ...]


USAGE: dict[str, Any] = {"usage_images": ((256, 256), (2160, 3840)), "refined_at": (160, 224), "refining_steps": 100}
PAPER = ("dino_vits16", "dino_vits8", "dino_vitb8")


def plan_for(device: torch.device, parts: int) -> Plan:
    """The plan for a device and a number of parts.

    Several parts on a CPU stay under five minutes of two cores: the largest ViT is left out, and large images.
    """
    if device.type == "cuda":
        return Plan(
            step_backbones=PAPER, step_sizes=(256,), memory_backbones=PAPER[2:], memory_sizes=(360,),
            memory_precisions=("fp32", "bf16"), one_shot_sizes=(256, 512, 1024), one_shot_batches=(1, 8),
            one_shot_memory_sizes=(1024,), **USAGE, generator="small", repeats=10,
            processes=tuple(2**i for i in range(torch.cuda.device_count().bit_length())),
        )  # fmt: skip
    whole = Plan(
        step_backbones=PAPER, step_sizes=(256,), memory_backbones=PAPER[2:], memory_sizes=(360,),
        memory_precisions=("fp32",), one_shot_sizes=(256, 512, 1024), one_shot_batches=(1, 4),
        one_shot_memory_sizes=(1024,), **USAGE, generator="tiny", repeats=3, processes=(1, 2),
    )  # fmt: skip
    few = {"step_backbones": PAPER[:2], "memory_backbones": PAPER[1:2], "one_shot_sizes": (256, 512)}
    return whole if parts == 1 else replace(whole, **few)  # type: ignore[arg-type]
