"""Folders that come with splice-ff: checkpoints, configs, examples. Imports no torch, so that commands ask at once."""

from __future__ import annotations

from pathlib import Path

PLACES = {"checkpoints": "checkpoints", "configs": "train/configs", "examples": "examples"}
"""Where each lies in a source tree; `pyproject.toml` puts it into the package's own folder, under its name."""


def bundled_dir(name: str) -> Path:
    """One of `PLACES`: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / PLACES[name]
