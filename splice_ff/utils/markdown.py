"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from splice_ff.errors import printable


def markdown_table(
    header: Sequence[Any], rows: Iterable[Sequence[Any]], numbers_from: int | None = None, *, is_padded: bool = False
) -> str:  # fmt: skip
    """A table, without a line break at its end.

    Args:
        header: the first row.
        rows: as many cells each; floats are written with four digits, None as an empty cell.
        numbers_from: the first column that is aligned to the right; none if None.
        is_padded: pad cells with spaces, so that the columns line up on a terminal.
    """
    first = len(header) if numbers_from is None else numbers_from
    cells = [[escape_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) if is_padded else 3 for column in zip(*cells, strict=True)]
    rule = ["-" * w if i < first else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    if is_padded:
        cells = [[f"{c:{'<' if i < first else '>'}{widths[i]}}" for i, c in enumerate(row)] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))


def escape_cell(value: Any) -> str:
    """A value as the text of one cell: no line breaks, no bars that would end it, no HTML, no control characters."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
