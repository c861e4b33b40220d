"""Lists of pairs on disk: which image is to be painted with the look of which."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splice_ff.errors import InputError
from splice_ff.images import SUFFIXES

READABLE = (*SUFFIXES, ".gif")


@dataclass(frozen=True)
class PairFiles:
    """A pair by its files, which need not exist: who uses the pair finds out."""

    name: str
    """Unique in its list, and usable as a file name."""
    structure: Path
    appearance: Path


def read_pairs(source: Path) -> list[PairFiles]:
    """Read a list of pairs.

    Args:
        source: one of

            - a folder of folders, each with a `structure.*` and an `appearance.*` image; its name is the pair's.
              Folders with neither are passed over. Sorted by name.
            - a .csv with a header, or a .jsonl with an object a line: `structure`, `appearance` (paths, from that
              file's folder) and, if wanted, `name`; others are ignored. A pair without a name is called
              `<structure stem>--<appearance stem>`, with `-2`, `-3`, … where that is taken.

    Raises:
        InputError: the source is missing, of another kind, damaged or without pairs; a line lacks a path; a name is
            given twice or is no file name; or a pair folder has one image only, or two of a kind.
    """
    if source.is_dir():
        pairs = list(_from_folders(source))
    elif not source.is_file():
        raise InputError(f"{source}: no such file or folder; check the path")
    elif source.suffix.lower() == ".csv":
        pairs = _from_lines(source, _csv_lines(source))
    elif source.suffix.lower() == ".jsonl":
        pairs = _from_lines(source, _json_lines(source))
    else:
        raise InputError(f"{source}: not a list of pairs; name a folder of pair folders, a .csv or a .jsonl")
    if not pairs:
        raise InputError(f"{source}: no pairs in it")
    return pairs


def _from_folders(source: Path) -> Iterator[PairFiles]:
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = {role: _picture(folder, role) for role in ("structure", "appearance")}
        missing = [role for role, path in found.items() if path is None]
        if len(missing) == 1:
            raise InputError(f"{folder}: no {missing[0]} image ({missing[0]}.png, .jpg, .webp, …)")
        if found["structure"] and found["appearance"]:
            yield PairFiles(folder.name, found["structure"], found["appearance"])


def _picture(folder: Path, stem: str) -> Path | None:
    found = sorted(path for path in folder.glob(f"{stem}.*") if path.suffix.lower() in READABLE)
    if len(found) > 1:
        raise InputError(f"{folder}: {' and '.join(path.name for path in found)}; keep one of them")
    return found[0] if found else None


def _csv_lines(source: Path) -> Iterator[tuple[int, Any]]:
    # utf-8-sig: spreadsheets begin their UTF-8 with a byte-order mark, which would become part of the first column.
    with open(source, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            missing = {"structure", "appearance"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(f"{source}: no column '{sorted(missing)[-1]}' in its first line")
            for row in reader:
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{source}: not a CSV file in UTF-8 ({error})") from error


def _json_lines(source: Path) -> Iterator[tuple[int, Any]]:
    try:
        for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), 1):
            if line.strip():
                yield number, json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 ({error})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{source}, line {number}: not JSON ({error.msg})") from error


def _from_lines(source: Path, lines: Iterator[tuple[int, Any]]) -> list[PairFiles]:
    entries = [_entry(source, number, line) for number, line in lines]
    taken: set[str] = set()
    for number, name, *_ in entries:
        if name in taken:
            raise InputError(f"{source}, line {number}: the name '{name}' is given twice")
        if name:
            taken.add(name)
    pairs = []
    for _, name, structure, appearance in entries:
        name = name or _free_name(f"{structure.stem}--{appearance.stem}", taken)
        taken.add(name)
        pairs.append(PairFiles(name, structure, appearance))
    return pairs


def _entry(source: Path, number: int, line: Any) -> tuple[int, str, Path, Path]:
    if not isinstance(line, Mapping):
        raise InputError(f"{source}, line {number}: not an object with 'structure' and 'appearance'")
    paths = {}
    for role in ("structure", "appearance"):
        if not isinstance(line.get(role), str) or not line[role].strip():
            raise InputError(f"{source}, line {number}: no '{role}'")
        paths[role] = source.parent / Path(line[role].strip()).expanduser()
    name = line.get("name")
    name = "" if name is None else str(name).strip()
    if name in (".", "..") or any(c in name for c in "/\\\0"):
        raise InputError(f"{source}, line {number}: the name '{name}' is no file name")
    return number, name, paths["structure"], paths["appearance"]


def _free_name(name: str, taken: set[str]) -> str:
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}-{count}"
    return free
