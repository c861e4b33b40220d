"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]], numbers_from: int | None = None) -> str:
    """A table, without a line break at its end.

    Args:
        header: the first row.
        rows: as many cells each; floats are written with four digits, None as an empty cell.
        numbers_from: the first column that is aligned to the right; none if None.
    """
    first = len(header) if numbers_from is None else numbers_from
    rule = ["---" if i < first else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(map(escape_cell, row))} |" for row in (header, rule, *rows))


def escape_cell(value: Any) -> str:
    """A value as the text of one cell: no line breaks, no bars that would end it."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
