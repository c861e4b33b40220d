"""The tables of a summary, in Markdown and in HTML."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from splice_ff.errors import printable
from splice_ff.evaluation.bootstrap import LEVEL
from splice_ff.evaluation.perceptual import SET_METRICS
from splice_ff.utils.markdown import escape_cell, markdown_table

Summary = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A number, its interval in smaller type, and whether it says "better" or "worse" beyond chance."""

    text: str
    detail: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the rows."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""
    is_wide: bool = True
    """Whether it wants a page's whole width."""

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        lines = [f"### {escape_cell(self.title)}", ""]
        lines += [escape_cell(self.note), ""] if self.note else []
        cells = [[f"{c.text} {c.detail}".strip() for c in row] for row in self.rows]
        return "\n".join([*lines, markdown_table(self.header, cells, numbers_from=1)]) + "\n"

    def html(self) -> str:
        """As an HTML table under its title."""
        head = "".join(f"<th>{escape(x)}</th>" for x in self.header)
        body = "".join(f"<tr>{''.join(_html_cell(c, i) for i, c in enumerate(row))}</tr>" for row in self.rows)
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        content = f"<h3>{escape(self.title)}</h3>{note}<div class='scroll'>{table}</div>"
        return f"<section{' class=wide' * self.is_wide}>{content}</section>"


def escape(text: str) -> str:
    """A text for HTML, in elements and in attributes; control characters and broken ones as \\x1b."""
    return html.escape(printable(text), quote=True)


def all_tables(summary: Summary) -> list[Table]:
    """Means; differences to the baseline; gap closed and means by domain, where there is more than one."""
    tables = [means_table(summary), differences_table(summary)]
    if summary["floor"]:
        tables.append(gap_table(summary))
    tables.append(kernel_distance_table(summary))
    if len(summary["domains"]) > 1:
        tables += [domain_table(summary, metric) for metric in summary["metrics"] if metric["name"] != "identity"]
    return [table for table in tables if table.rows]


def means_table(summary: Summary) -> Table:
    """Metrics down, methods across."""
    methods = summary["methods"]
    rows = [
        [Cell(_named(metric))] + [_estimate(m["means"].get(metric["name"])) for m in methods.values()]
        for metric in summary["metrics"]
    ]
    rows += _set_rows(summary)
    rows.append([Cell("seconds a pair, median")] + [Cell(_seconds(m["seconds"])) for m in methods.values()])
    header = ["mean over pairs", *(f"{name} ({m['pairs']})" for name, m in methods.items())]
    return Table(
        "Means",
        header,
        rows,
        "In brackets 95 % bootstrap intervals over pairs, from 5 pairs on; after a name its pairs.",
    )


def _set_rows(summary: Summary) -> list[list[Cell]]:
    """FID and KID, where they were measured: of the pairs that all methods have."""
    sets = [m["sets"] for m in summary["methods"].values()]
    if not all(sets):
        return []
    return [
        [Cell(f"{label} to the appearance images, {sets[0]['pairs']} pairs ↓"), *(Cell(number(s[name])) for s in sets)]
        for name, label in SET_METRICS.items()
    ]


def differences_table(summary: Summary) -> Table:
    """Each method minus the baseline, pair by pair."""
    baseline = summary["baseline"]
    methods = {name: m for name, m in summary["methods"].items() if m["differences"]}
    rows = [
        [Cell(_named(metric))]
        + [_difference(m["differences"].get(metric["name"]), metric["better"]) for m in methods.values()]
        for metric in summary["metrics"]
    ]
    note = (
        f"Mean of method minus {baseline} on the pairs that both have, 95 % interval, and the share of those pairs on "
        "which the method is better; where both are alike, half a pair counts."
    )
    return Table(f"Paired differences to {baseline}", ["difference", *methods], rows if methods else [], note)


def gap_table(summary: Summary) -> Table:
    """What share of the way from the floor to the baseline each method goes, by domain."""
    floor, baseline = summary["floor"], summary["baseline"]
    methods = {name: m for name, m in summary["methods"].items() if m["gap_closed"]}
    rows = []
    for metric in summary["metrics"]:
        if not any(metric["name"] in m["gap_closed"] for m in methods.values()):
            continue
        for domain in ("all", *summary["domains"]) if len(summary["domains"]) > 1 else ("all",):
            gaps = [m["gap_closed"] if domain == "all" else m["gap_closed_by_domain"][domain] for m in methods.values()]
            rows.append([Cell(f"{metric['label']}, {domain}"), *(_estimate(gap.get(metric["name"])) for gap in gaps)])
    note = f"0: as far from the appearance image as {floor}; 1: as near as {baseline}. – where these two do not differ."
    return Table(f"Gap closed from {floor} to {baseline}", ["share", *methods], rows, note)


def kernel_distance_table(summary: Summary) -> Table:
    """How far each method's images are, as a set, from the domain's real ones: judges and domains down."""
    methods, baseline = list(summary["methods"]), summary["baseline"]
    rows = [
        [Cell(f"{judge}, {domain} ↓"), *(_distance(distances, method, baseline) for method in methods)]
        for judge, by_domain in summary["kernel_distances"].items()
        for domain, distances in by_domain.items()
    ]
    note = (
        "How far all outputs of a method, as a set, are from the appearance images, in each judge's pooled features "
        "(unbiased squared MMD with KID's kernel): about 0 for images drawn alike. Pairs that share an image are not "
        f"compared with each other. p: how likely a difference from {baseline} as large is by chance, by swapping the "
        "two methods' outputs in pairs at random (permutation test)."
    )
    return Table("Kernel distance to real images, by domain", ["judge, domain", *methods], rows, note)


def domain_table(summary: Summary, metric: dict[str, str]) -> Table:
    """One metric: domains down, methods across."""
    methods, name = summary["methods"], metric["name"]
    rows = [
        [Cell(f"{domain} ({n})")] + [_estimate(m["by_domain"][domain].get(name)) for m in methods.values()]
        for domain, n in summary["domains"].items()
    ]
    return Table(f"{_named(metric)}, by domain", ["domain (pairs)", *methods], rows, is_wide=False)


def number(value: float | None) -> str:
    """Three significant digits; a dash for none; rounding errors are 0."""
    if value is None:
        return "–"
    if abs(value) < 1e-6:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _seconds(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else number(value)


def _estimate(estimate: dict[str, Any] | None) -> Cell:
    if estimate is None:
        return Cell("–")
    if estimate["low"] is None:
        return Cell(number(estimate["value"]))
    return Cell(number(estimate["value"]), f"[{number(estimate['low'])}, {number(estimate['high'])}]")


def _difference(difference: dict[str, Any] | None, better: str) -> Cell:
    cell = _estimate(difference)
    if difference is None:
        return cell
    verdict = ""
    if difference["low"] is not None and not difference["low"] <= 0 <= difference["high"]:
        verdict = "better" if (difference["value"] > 0) == (better == "higher") else "worse"
    sign = "+" if difference["value"] > 0 else ""
    return Cell(sign + cell.text, f"{cell.detail} {difference['wins']:.0%}".strip(), verdict)


def _distance(distances: dict[str, Any], method: str, baseline: str) -> Cell:
    if method not in distances:
        return Cell("–")
    found, pairs = distances[method], distances[method]["pairs"]
    value, p_value = found["value"], found["p_value"]
    if p_value is None:
        return Cell(number(value), f"({pairs} pairs)")
    verdict = ("better" if value < found["baseline"] else "worse") if p_value < 1 - LEVEL else ""
    others = (
        f"({pairs} pairs: {baseline} {number(found['baseline'])}) " if pairs != distances[baseline]["pairs"] else ""
    )
    return Cell(number(value), f"{others}p {p_value:.2g}", verdict)


def _named(metric: dict[str, str]) -> str:
    return f"{metric['label']} {'↑' if metric['better'] == 'higher' else '↓'}"


def _html_cell(cell: Cell, column: int) -> str:
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    if column == 0:
        return f"<th>{escape(cell.text)}</th>"
    return f"<td{f' class={cell.verdict}' if cell.verdict else ''}>{escape(cell.text)}{detail}</td>"
