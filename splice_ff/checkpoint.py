"""Trained generators in files: safetensors, with what made them in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from splice_ff.errors import InputError
from splice_ff.generators.skip_unet import SkipUNet
from splice_ff.images import atomic_write

FORMAT = "splice-ff per-pair generator"


class CheckpointError(InputError):
    """A generator file is missing, damaged, or of another kind."""


def save_generator(generator: SkipUNet, settings: Mapping[str, str], path: str | Path) -> None:
    """Write a per-pair generator in float32, whole or not at all."""
    tensors = {k: t.detach().float().cpu().contiguous() for k, t in generator.state_dict().items()}
    metadata = {"format": FORMAT, "settings": json.dumps(dict(settings))}
    atomic_write(path, lambda file: save_file(tensors, file, metadata))


def load_generator(path: str | Path) -> tuple[SkipUNet, dict[str, str]]:
    """Read what `save_generator` wrote.

    Returns:
        The generator in eval mode, on the CPU, and the settings that made it.

    Raises:
        CheckpointError: no such file, damaged, not a per-pair generator, or with NaN weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such generator file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path}: not a generator saved by --save-generator")
            settings = json.loads(metadata["settings"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
        generator = SkipUNet(settings["generator"])
        generator.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: a damaged generator file") from error
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise CheckpointError(f"{path}: a generator with NaN or infinite weights")
    return generator.eval().requires_grad_(False), settings
