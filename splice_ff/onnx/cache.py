"""Exports of models in the cache of the Hugging Face hub, so that painting starts without torch. Imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from splice_ff import __version__
from splice_ff.onnx.files import CARD, FORMAT
from splice_ff.utils.bundled import bundled_dir
from splice_ff.utils.files import file_digest

A_DAY = 24 * 3600


def find_export(model: str) -> Path | None:
    """The folder of a model's export, if `model` is such a folder or has one in the cache."""
    folders = (Path(model).expanduser(), _place(model))
    return next((folder for folder in folders if folder and (folder / CARD).is_file()), None)


def export_in_background(model: str) -> bool:
    """Begin to export a model into the cache, at low priority, in a process that outlives this one.

    Returns:
        Whether it was begun: not without the packages, not for a model of the hub, and once a day where it failed.
    """
    folder = _place(model)
    if folder is None or not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        return False
    try:
        if folder.is_dir() and time.time() - folder.stat().st_mtime < A_DAY:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "splice_ff", "export", model, "-o", str(folder), "--quiet"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, process.pid, 15)
    except OSError:  # a read-only home folder, or no memory for another process: torch will paint the next image too
        return False
    return True


def _place(model: str) -> Path | None:
    """Where a model's export belongs, by its files and the version that exports; None for a model of the hub."""
    for folder in (Path(model).expanduser(), bundled_dir("checkpoints") / model):
        files = folder / "config.json", folder / "model.safetensors"  # the former names the backbone's weights
        if all(file.is_file() for file in files):
            from huggingface_hub.constants import HF_ASSETS_CACHE

            key = " ".join([__version__, FORMAT, *map(file_digest, files)])
            return Path(HF_ASSETS_CACHE, "splice-ff", "onnx", sha256(key.encode()).hexdigest()[:16])
    return None
