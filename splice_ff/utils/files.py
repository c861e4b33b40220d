"""Files that are whole or absent; safetensors with a format's name in their metadata; where the checkpoints lie."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from splice_ff.errors import CheckpointError, InputError
from splice_ff.utils.bundled import bundled_dir


def check_place(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `atomic_write` could write `path`; leaves nothing behind.

    Raises:
        InputError: `path` is a folder or a device, or its folder takes no file.
    """
    path = Path(path)
    try:
        folder = next(parent for parent in _replaceable(path).parents if parent.exists())
        # Trying is the only sure test: permission bits say nothing to root or about a read-only disk.
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another name or folder") from error


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write any file so that it is whole or absent; an existing one stays until the new one is complete.

    Args:
        path: the file to make. A missing folder is created, a symbolic link followed.
        write: makes the file at the temporary path that it is given, in the same folder with the same suffix.

    Raises:
        OSError: the place takes no file. What `write` raises passes through; the temporary file is removed.
    """
    target = _replaceable(Path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not from tempfile, whose files only their owner may read: one that `write` opens follows the umask.
    temporary = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def checkpoints_dir() -> Path:
    """Folder of the bundled checkpoints."""
    return bundled_dir("checkpoints")


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
        # Not save_file, whose files only their owner may read.
        atomic_write(path, lambda file: file.write_bytes(save(ready, dict(metadata))))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error


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


def reason(error: Exception) -> str:
    """Why the system refused, in its own words."""
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _replaceable(path: Path) -> Path:
    """The real path behind links, once it is known that os.replace may put a regular file there."""
    if path.exists() and not path.is_file():  # a folder, or a device: /dev/null must survive root
        raise OSError("it is not a regular file")
    return Path(os.path.realpath(path))
