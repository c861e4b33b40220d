"""Lists of pairs on disk: which image is to be painted with the look of which."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from splice_ff.errors import InputError, first_line
from splice_ff.images import SUFFIXES
from splice_ff.utils.files import reason

READABLE = (*SUFFIXES, ".gif")
MAX_NAME = 200
"""Bytes of a pair's name, which becomes part of file names; most file systems end at 255."""
UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""In file names: control characters and line ends, which spoil terminals and logs, and halves of characters."""


@dataclass(frozen=True)
class PairFiles:
    """A pair by its files, which need not exist: who uses the pair finds out."""

    name: str
    """Unique in its list, and usable as a file name."""
    structure: Path
    appearance: Path
    domain: str = "all"
    """What kind of images it is of, for tables by domain."""


def read_pairs(source: Path) -> list[PairFiles]:
    """Read a list of pairs.

    Args:
        source: one of

            - a folder of folders, each with a `structure.*` and an `appearance.*` image; its name is the pair's.
              Folders with neither are passed over. Sorted by name.
            - a .csv with a header, or a .jsonl with an object a line: `structure`, `appearance` (paths, from that
              file's folder; `~` is the home folder) and, if wanted, `name` and `domain`; others are ignored. A pair
              without a name is called `<structure stem>--<appearance stem>`. UTF-8, whatever the locale.

            In names control characters become `_`, long ones end in a hash, and `-2`, `-3`, … tell like ones apart.

    Raises:
        InputError: the source is missing, of another kind, damaged or without pairs; a line lacks a path; a name is
            given twice or is no file name; or a pair folder has one image only, or two of a kind.
    """
    if source.is_dir():
        pairs = _from_folders(source)
    elif not source.is_file():
        raise InputError(f"{source}: no such file or folder; check the path")
    elif source.suffix.lower() == ".csv":
        pairs = _from_lines(source, _csv_lines(source))
    elif source.suffix.lower() == ".jsonl":
        pairs = _from_lines(source, _json_lines(source))
    else:
        raise InputError(f"{source}: not a list of pairs; name a folder of pair folders, a .csv or a .jsonl")
    if not pairs:
        raise InputError(
            f"{source}: no pairs in it: a pair is a folder with structure.* and appearance.* (for a folder of images, "
            "`splice-ff batch` takes --look)"
        )
    return pairs


def _from_folders(source: Path) -> list[PairFiles]:
    pairs, names = [], Names()
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(os.listdir(folder))
        structure, appearance = (_image(folder, files, role) for role in ("structure", "appearance"))
        if structure and appearance:
            pairs.append(PairFiles(names.free(folder.name), structure, appearance))
        elif structure or appearance:
            missing = "appearance" if structure else "structure"
            raise InputError(f"{folder}: no {missing} image ({missing}.png, .jpg, .webp, …)")
    return pairs


def _image(folder: Path, files: list[str], role: str) -> Path | None:
    images = [name for name in files if os.path.splitext(name)[0] == role and Path(name).suffix.lower() in READABLE]
    if len(images) > 1:
        raise InputError(f"{folder}: {' and '.join(images)}; keep one of them")
    return folder / images[0] if images else None


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
    number = 0
    try:
        # Not splitlines, which also splits at characters that JSON allows within strings, as U+2028.
        for number, line in enumerate(source.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                yield number, json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}, line {number}: not JSON ({first_line(error)})") from error


def _from_lines(source: Path, lines: Iterator[tuple[int, Any]]) -> list[PairFiles]:
    try:
        entries = [_entry(source, number, line) for number, line in lines]
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({reason(error)})") from error
    given: dict[str, None] = {}  # in order
    for number, name, *_ in entries:
        if name in given:
            raise InputError(f"{source}, line {number}: the name '{name:.80}' is given twice")
        if name:
            given[name] = None
    names = Names(given)
    return [
        PairFiles(
            names.of(name) if name else names.free(f"{structure.stem}--{appearance.stem}"),
            structure,
            appearance,
            domain,
        )
        for _, name, structure, appearance, domain in entries
    ]


def _entry(source: Path, number: int, line: Any) -> tuple[int, str, Path, Path, str]:
    if not isinstance(line, Mapping):
        raise InputError(f"{source}, line {number}: not an object with 'structure' and 'appearance'")
    paths = {}
    for role in ("structure", "appearance"):
        if not isinstance(line.get(role), str) or not line[role].strip():
            raise InputError(f"{source}, line {number}: no '{role}'")
        path = Path(os.path.expanduser(line[role].strip()))
        paths[role] = source.parent / path
    name = line.get("name")
    name = "" if name is None else str(name).strip()
    if name in (".", "..") or any(c in name for c in "/\\"):
        raise InputError(f"{source}, line {number}: the name '{name:.80}' is no file name")
    domain = line.get("domain")
    domain = "" if domain is None else str(domain).strip()
    return number, name, paths["structure"], paths["appearance"], domain or "all"


class Names:
    """Names that are usable as file names, each given out once.

    Args:
        reserved: names that some pairs ask for; they get them, whatever comes before.
    """

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self._usable = dict.fromkeys(reserved, "")
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        for name in reserved:
            self._usable[name] = self.free(name)

    def of(self, reserved: str) -> str:
        """The usable form of a reserved name."""
        return self._usable[reserved]

    def free(self, name: str) -> str:
        """A usable form of any name, with a number where it is taken."""
        usable = free = _usable(name)
        while free in self._taken:
            self._counts[usable] = self._counts.get(usable, 1) + 1
            free = f"{usable}-{self._counts[usable]}"
        self._taken.add(free)
        return free


def _usable(name: str) -> str:
    clean = UNUSABLE.sub("_", name)
    if len(clean) * 4 <= MAX_NAME or len(clean.encode()) <= MAX_NAME:
        return clean
    identity = sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{clean.encode()[: MAX_NAME - 13].decode(errors='ignore')}-{identity}"
