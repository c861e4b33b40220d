"""What a reader needs to know to judge figures: processor, device, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

import splice_ff


def describe(device: torch.device) -> str:
    """The machine in one line: processor or GPU, threads, torch."""
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)} of {_processor()}"
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{gpu}{threads}, torch {torch.__version__}"


def version() -> str:
    """The package's version, with the commit where it runs from a git checkout, and whether that was changed."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return splice_ff.__version__
    return f"{splice_ff.__version__}, commit {commit.stdout.strip()}{' with changes' if changes.stdout else ''}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())
