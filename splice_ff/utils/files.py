"""Files that are whole or absent, what tells one from another, and where the bundled checkpoints lie."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile

from splice_ff.errors import InputError
from splice_ff.utils.bundled import bundled_dir


def check_place(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `write_file` could write `path`; leaves nothing behind.

    Raises:
        InputError: `path` is a folder or a device, its name is not one that the system takes, or its folder takes no
            file.
    """
    try:
        target = _replaceable(Path(path))
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # a name that is too long is refused here, and not after the work
        folder = next(parent for parent in target.parents if parent.exists())
        # Trying is the only sure test: permission bits say nothing to root or about a read-only disk.
        with TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte, or one that cannot be encoded
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another name or folder") from error


def check_not_input(path: Path, inputs: Iterable[Path | None]) -> None:
    """Find out whether writing `path` would replace what a run reads; None stands for an input that was not given.

    Raises:
        InputError: it is the file of an input, under whatever name.
    """
    for given in inputs:
        known = given and given.expanduser()
        if known and path.exists() and known.exists() and os.path.samefile(path, known):
            raise InputError(f"{path}: the output would replace an input; choose another name")


def file_digest(path: Path) -> str:
    """SHA-256 of what a file holds, in hexadecimal; it is read again only once its size or its time has changed.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    return _digest(str(path.absolute()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that it is whole or absent, even if the machine loses power; an existing one stays until then.

    What an encoder makes is made in memory first: encoders that write to a file's descriptor may pass over its errors.

    Args:
        path: the file to make. A missing folder is created, a symbolic link followed.
        data: what it shall hold.

    Raises:
        OSError: the place takes no file. An existing one is left as it was.
    """
    atomic_write(path, lambda file: file.write_bytes(data))


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """`write_file` for what can only be written to a path, or is too large for memory.

    Args:
        path: as of `write_file`.
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
    sync_folder(target.parent)


def checkpoints_dir() -> Path:
    """Folder of the bundled checkpoints."""
    return bundled_dir("checkpoints")


def reason(error: Exception) -> str:
    """Why the system refused, in its own words."""
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _replaceable(path: Path) -> Path:
    """The real path behind links, once it is known that os.replace may put a regular file there."""
    if path.exists() and not path.is_file():  # a folder, or a device: /dev/null must survive root
        raise OSError("it is not a regular file")
    return Path(os.path.realpath(path))


def sync_folder(folder: Path) -> None:
    """Make the new name last through a loss of power, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems do not sync them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
