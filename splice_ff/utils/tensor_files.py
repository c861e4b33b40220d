"""Safetensors files with the name of their format in the metadata, checked when written and when read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from splice_ff.errors import CheckpointError
from splice_ff.utils.files import reason, write_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, whole or not at all.

    Raises:
        CheckpointError: a tensor holds NaN or infinity (in half precision: also what overflows), or the place takes
            no file.
    """
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: not written: tensor '{key}' holds NaN or infinite values")
    ready = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        write_file(path, save(ready, dict(metadata)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({reason(error)})") from error


def read_tensors(path: Path, kind: str, wanted_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `write_tensors` wrote.

    Args:
        path: the file.
        kind: what it should be, for messages: "a look".
        wanted_format: the `format` entry that its metadata must have.

    Raises:
        CheckpointError: no such file, damaged, of another format, or with NaN or infinite values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
    except Exception as error:  # safetensors passes on what its parser, the file system or torch raise
        raise CheckpointError(f"{path}: damaged, or not {kind} ({error})") from error
    if metadata.get("format") != wanted_format:
        found = metadata.get("format", "none")
        raise CheckpointError(f"{path}: not {kind} (format '{found}', expected '{wanted_format}')")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor '{key}' holds NaN or infinite values")
    return tensors, metadata
