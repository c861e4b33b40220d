"""Images named by people: files, folders, patterns, and lists of them in text files."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splice_ff.data.image_folder import list_folder
from splice_ff.data.pair_list import READABLE, Names
from splice_ff.errors import InputError
from splice_ff.utils.files import reason
from splice_ff.utils.run_folder import is_run_folder


@dataclass(frozen=True)
class NamedImages:
    """Images with names for what is made from them."""

    images: list[tuple[str, Path]]
    """Names, each given once, and files. Those from below a folder keep their subfolders."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What else lies in the folders, by kind."""


def list_images(sources: Sequence[Path]) -> NamedImages:
    """Images by files, folders (with all below), patterns (`*`, `?`, `[a-z]`, `**`) and .txt files with a path a line.

    A file that exists is taken as it is called, whatever stars or brackets are in its name. Paths in a text file are
    from its folder.

    Raises:
        InputError: a source is missing, matches nothing, or cannot be read; or a folder has no images.
    """
    names, images, left_out = Names(), [], Counter[str]()
    for source in sources:
        for name, path in _from_source(source, left_out):
            images.append((names.free(name), path))
    return NamedImages(images, left_out)


def _from_source(source: Path, left_out: Counter[str]) -> Iterator[tuple[str, Path]]:
    if source.is_dir():
        listing = list_folder(source)
        left_out.update(listing.left_out)
        if not listing.images:
            raise InputError(f"{source}: no images in this folder; they end in {', '.join(READABLE)}")
        yield from ((path.with_suffix("").as_posix(), source / path) for path in listing.images)
    elif source.exists():
        is_list = source.suffix.lower() == ".txt"
        yield from ((path.stem, path) for path in (_lines_of(source) if is_list else [source]))
    elif glob.has_magic(str(source)):
        root = next(folder for folder in source.parents if not glob.has_magic(str(folder)))
        images = []
        for path in sorted(path for path in map(Path, glob.glob(str(source), recursive=True)) if path.is_file()):
            if path.suffix.lower() not in READABLE:
                left_out["file that is no image"] += 1
            elif any(
                is_run_folder(folder) for folder in path.parents if folder.is_relative_to(root) and folder != root
            ):
                left_out["image made by a run"] += 1
            else:
                images.append(path)
        if not images:
            raise InputError(f"{source}: no image matches; check the pattern")
        yield from ((path.stem, path) for path in images)
    else:
        raise InputError(f"{source}: no such file or folder; check the path")


def _lines_of(source: Path) -> list[Path]:
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not a list of paths in UTF-8 ({reason(error)})") from error
    paths = [source.parent / os.path.expanduser(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise InputError(f"{source}: no paths in it; write one a line")
    return paths
