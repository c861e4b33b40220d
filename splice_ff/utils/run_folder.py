"""Folders that a run fills: a record says what made their files, runs are not mixed, and one run writes at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from splice_ff.errors import InputError, first_line
from splice_ff.utils.files import atomic_write, reason

LOCK = ".lock"


@dataclass(frozen=True)
class Claim:
    """What `claim_folder` met."""

    is_new: bool
    """Whether no run had recorded its settings there before."""
    changed: Mapping[str, tuple[Any, Any]]
    """Settings that differ from the record but may do so: before and now, by name."""


def claim_folder(
    record: Path, settings: Mapping[str, Any], *, holds: str, fixed: Collection[str] | None = None
) -> Claim:
    """Record what makes the files of a folder; refuse to mix them with files made otherwise.

    Args:
        record: the .json or .yaml file in the folder that keeps the settings; the folder is created.
        settings: plain values by name, as JSON or YAML holds them.
        holds: what the folder's files are, for messages: "images".
        fixed: names of the settings that must not change; all of them if None.

    Raises:
        InputError: the record is damaged, was made with other values of fixed settings, or cannot be written.
    """
    before = _read(record) if record.exists() else None
    changed = {k: (before.get(k), v) for k, v in settings.items() if before.get(k) != v} if before is not None else {}
    if wrong := [k for k in changed if fixed is None or k in fixed]:
        was = "; ".join(f"{k}: {changed[k][0]!r:.80} before, {changed[k][1]!r:.80} now" for k in wrong)
        raise InputError(f"{record.parent}: holds {holds} made with other settings ({was}); choose another folder")
    if before is None or changed:
        text = yaml.safe_dump(dict(settings), sort_keys=False) if _is_yaml(record) else json.dumps(settings, indent=1)
        try:
            atomic_write(record, lambda file: file.write_text(text.rstrip() + "\n", encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{record}: cannot be written ({reason(error)})") from error
    return Claim(before is None, changed)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder, which is created.

    The operating system releases the lock when the process ends, however it ends: a lock file that a killed run left
    behind is no obstacle.

    Raises:
        InputError: another run writes there, or the folder takes no files.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another run is writing there; wait for its end, or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({reason(error)}); choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def is_run_folder(folder: Path) -> bool:
    """Whether a run has written to this folder under `lock_folder`: its files are results, not data."""
    return (folder / LOCK).is_file()


def _read(record: Path) -> dict[str, Any]:
    try:
        text = record.read_text(encoding="utf-8")
        return dict(yaml.safe_load(text) if _is_yaml(record) else json.loads(text))
    except (OSError, UnicodeDecodeError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"{record}: damaged ({first_line(error)}), and it says what made the files beside it; put it back, or "
            "choose another folder"
        ) from error


def _is_yaml(record: Path) -> bool:
    return record.suffix in (".yaml", ".yml")
