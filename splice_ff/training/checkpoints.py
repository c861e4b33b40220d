"""Checkpoints of a training run: whole or absent, the newest few kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, keep: int) -> None:
    """Write all state of the run as `output/checkpoints/step-…`; every process must call this.

    It is written under another name first: a folder called step-… is whole. Machines must share the output folder.
    """
    folder = output / "checkpoints" / f"step-{step:08d}"
    unfinished = folder.with_name(f"unfinished-{step:08d}")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        for old in _checkpoints(output)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def newest_checkpoint(output: Path) -> Path | None:
    """The last whole checkpoint in an output folder."""
    return next(reversed(_checkpoints(output)), None)


def _checkpoints(output: Path) -> list[Path]:
    return sorted((output / "checkpoints").glob("step-*"))
