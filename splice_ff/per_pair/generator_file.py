"""Trained per-pair generators in files: safetensors, with what made them in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from splice_ff.errors import CheckpointError
from splice_ff.networks.skip_unet import SkipUNet
from splice_ff.utils.tensor_files import read_tensors, write_tensors

FORMAT = "splice-ff per-pair generator"


def save_generator(generator: nn.Module, settings: Mapping[str, str], path: str | Path) -> None:
    """Write a per-pair generator in float32, whole or not at all."""
    tensors = {k: t.float() for k, t in generator.state_dict().items()}
    write_tensors(Path(path), tensors, {"format": FORMAT, "settings": json.dumps(dict(settings))})


def load_generator(path: str | Path) -> tuple[SkipUNet, dict[str, str]]:
    """Read what `save_generator` wrote.

    Returns:
        The generator in eval mode, on the CPU, and the settings that made it.

    Raises:
        CheckpointError: no such file, damaged, not a per-pair generator, or with NaN weights.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path, "a generator saved by --save-generator", FORMAT)
    try:
        settings = {str(key): str(value) for key, value in json.loads(metadata["settings"]).items()}
        if settings["size"] != "None":
            int(settings["size"])
        generator = SkipUNet(settings["generator"])
        generator.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: a damaged generator file") from error
    return generator.eval().requires_grad_(False), settings
