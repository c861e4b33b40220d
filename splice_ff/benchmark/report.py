"""What a part of the benchmark found: rows for JSON, and the same as a table that one can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from splice_ff.benchmark.timing import Timing


@dataclass(frozen=True)
class Part:
    """One part of the benchmark."""

    title: str
    """Says what the table shows, in what unit."""
    header: Sequence[str]
    table: list[list[str]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """As `table`, with every repeat."""
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Title, an aligned Markdown table, notes."""
        return "\n".join([f"### {self.title}", "", *aligned(self.header, self.table), *(f"\n{n}" for n in self.notes)])


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns line up; all but the first are set to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(header), line(rule), *map(line, rows)]


FLOOR_HEADER = ("GFLOP", "floor", "floor/time")


def floor_cells(timing: Timing, scale: float = 1.0) -> list[str]:
    """Operations, floor in seconds x `scale`, and the share of the time that it is."""
    if not timing.operations:
        return ["–"] * 3
    return [f"{timing.operations / 1e9:.4g}", f"{timing.floor * scale:.3g}", f"{timing.share:.0%}"]


def spread(timing: Timing, scale: float = 1.0) -> str:
    """Median and, in brackets, the slowest, in seconds x `scale`."""
    return f"{timing.median * scale:.4g} ({max(timing.seconds) * scale:.4g})"
