"""The file of mined pairs: for every image of a dataset, rows of its nearest neighbors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splice_ff.errors import InputError
from splice_ff.utils.files import atomic_write, reason


@dataclass(frozen=True, eq=False)
class MinedPairs:
    """Neighbors of the images of a dataset, a pair a place. Rows count as `open_dataset` gives them.

    Attributes:
        structure: row of an image, rising.
        appearance: row of its neighbor; the neighbors of one image stand nearest first.
        similarity: cosine of their descriptors (`splice_ff.data.descriptors`), float32.
        about: what they were mined from: data, split, rows, backbone, fingerprint, ...
    """

    structure: NDArray[np.int64]
    appearance: NDArray[np.int64]
    similarity: NDArray[np.float32]
    about: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Number of images in the dataset."""
        return int(self.about["rows"])

    def of(self, index: int) -> NDArray[np.int64]:
        """The neighbors of an image, nearest first; none where it was left out or could not be read."""
        start, stop = np.searchsorted(self.structure, [index, index + 1])
        return self.appearance[start:stop]

    def check(self, rows: int, split: str | None = None) -> None:
        """See that their rows are those of a dataset, as far as its length and the name of its split tell.

        Raises:
            InputError: they are another one's.
        """
        theirs = self.about.get("split", split)
        if split is not None and theirs != split:
            raise InputError(f"mined pairs are of the split '{theirs}', not '{split}': name the one that they are of")
        if self.rows != rows:
            raise InputError(f"mined pairs are of {self.rows} images, not {rows}: another dataset or split")


def read_mined_pairs(path: Path) -> MinedPairs:
    """Read what `write_mined_pairs` wrote.

    Raises:
        InputError: no such file, or not one of ours.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {})[b"splice_ff"])
            table = file.read(columns=["structure", "appearance", "similarity"])
        structure, appearance, similarity = (column.to_numpy() for column in table.columns)
        pairs = MinedPairs(structure, appearance, similarity, dict(about))
        _check_rows(pairs)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; make it with `splice-ff pairs DATA -o {path.name}`") from error
    except (OSError, KeyError, ValueError, TypeError, RecursionError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a file of pairs, or damaged; make it with `splice-ff pairs`") from error
    return pairs


def write_mined_pairs(path: Path, pairs: MinedPairs) -> None:
    """Write pairs as parquet, whole or not at all: columns `structure`, `appearance`, `similarity`.

    Raises:
        InputError: the place takes no file.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    columns = {name: getattr(pairs, name) for name in ("structure", "appearance", "similarity")}
    table = pyarrow.table(columns, metadata={"splice_ff": json.dumps(dict(pairs.about))})
    try:
        atomic_write(path, partial(parquet.write_table, table))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another name or folder") from error


def _check_rows(pairs: MinedPairs) -> None:
    for rows in (pairs.structure, pairs.appearance):
        if rows.dtype != np.int64 or (len(rows) and not 0 <= rows.min() <= rows.max() < pairs.rows):
            raise ValueError("rows that the dataset does not have")
    if (np.diff(pairs.structure) < 0).any():
        raise ValueError("rows out of order")
