"""Where a training run speaks: lines of JSON in its folder, accelerate's trackers, messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm


class RunLog:
    """Writes from the main process only, whoever calls.

    Args:
        folder: for `log.jsonl`; made if it is not there.
        accelerator: whose trackers get the values too.
        trackers: whether it has any.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, trackers: bool) -> None:
        self.folder, self.accelerator = folder, accelerator
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        if trackers:
            accelerator.init_trackers("log")

    def put(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """A line of some kind."""
        self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")

    def say(self, message: str) -> None:
        """A line for the reader."""
        if self.accelerator.is_main_process:
            tqdm.write(message)
