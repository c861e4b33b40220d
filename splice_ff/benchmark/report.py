"""What a benchmark found: rows for JSON, and the same as tables to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from splice_ff.benchmark.timing import Timing
from splice_ff.utils.markdown import markdown_table


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
        """Title, a Markdown table, notes."""
        table = markdown_table(self.header, self.table, numbers_from=1, is_padded=True)
        return "\n".join([f"### {self.title}", "", table, *(f"\n{note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"title": self.title, "rows": self.rows, "notes": self.notes}


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark found."""

    command: str | None
    machine: str
    version: str
    rates: dict[str, float]
    """Operations a second of large matrix products, by precision."""
    notes: Sequence[str] = ()
    """On these rates."""
    parts: dict[str, Part] = field(default_factory=dict)

    def heading(self) -> str:
        """Machine, version and rates."""
        rates = ", ".join(f"{rate / 1e9:.3g} GFLOP/s {name}" for name, rate in self.rates.items())
        return f"{self.machine}; splice-ff {self.version}\nmatrix products: {'; '.join([rates, *self.notes])}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "command": self.command,
            "machine": self.machine,
            "version": self.version,
            "operations_per_second": self.rates,
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
        }


FLOOR_HEADER = ("GFLOP", "floor", "floor/time")


def floor_cells(timing: Timing, scale: float = 1.0) -> list[str]:
    """Operations, floor in seconds x `scale`, and the share of the time that it is."""
    if not timing.operations:
        return ["–"] * 3
    return [f"{timing.operations / 1e9:.4g}", f"{timing.floor * scale:.3g}", f"{timing.share:.0%}"]


def spread(timing: Timing, scale: float = 1.0) -> str:
    """Median and, in brackets, the slowest, in seconds x `scale`."""
    return f"{timing.median * scale:.4g} ({max(timing.seconds) * scale:.4g})"
