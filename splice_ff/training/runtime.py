"""accelerate as both trainers use it: devices, precision and trackers, and decisions that all processes share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from splice_ff.errors import InputError
from splice_ff.utils.machine import default_device


def make_accelerator(precision: str, trackers: Sequence[str], folder: Path, accumulation: int = 1) -> Accelerator:
    """accelerate's view of the devices.

    Args:
        precision: "fp32" or "bf16".
        trackers: names that accelerate knows.
        folder: where they write.
        accumulation: batches whose gradients make a step.

    Raises:
        InputError: a tracker that is unknown or not installed, a precision that the device does not have, or another
            one than this process has trained in before: accelerate keeps one for the life of a process.
    """
    try:
        accelerator = Accelerator(
            cpu=default_device().type == "cpu",  # else several processes without a GPU see one each
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_steps=accumulation,
            log_with=list(trackers) or None,
            project_dir=str(folder),
        )
    except ValueError as error:
        raise InputError(f"run.precision={precision}, run.trackers={list(trackers)}: {error}") from error
    # accelerate would go on without them.
    if missing := sorted({*trackers} - {"all", *(str(tracker) for tracker in accelerator.log_with)}):
        raise InputError(f"run.trackers: install {', '.join(missing)}, or leave it out")
    return accelerator


def agree(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether any process raised each flag: one that stops alone would leave the others waiting."""
    if accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(raised, "sum").tolist()]
