"""What an evaluation leaves: `report.html` (all in one file), `results.parquet`, `summary.json`, `summary.md`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image
from torchvision.transforms.v2 import functional as TF

from splice_ff.errors import InputError, printable
from splice_ff.evaluation import plots, tables
from splice_ff.evaluation.rows import Row
from splice_ff.evaluation.tables import escape
from splice_ff.images import load_image
from splice_ff.utils.files import reason, write_file
from splice_ff.utils.markdown import escape_cell

Summary = dict[str, Any]
THUMBNAIL = 220
"""Longer side of an image in the grid, in pixels."""
TRIVIAL = ("copy", "color")


def write_report(folder: Path, summary: Summary, rows: Sequence[Row]) -> Path:
    """Write all four files, each whole or not at all.

    Args:
        folder: of the evaluation; images of rows are found from there.
        summary: what `splice_ff.evaluation.summary.summarize` made of the rows.
        rows: those of the methods and pairs to show.

    Returns:
        The path of report.html.

    Raises:
        InputError: the folder takes no file, a full disk for one; files of an earlier report stay as they were.
    """
    files = {
        "summary.json": json.dumps(summary, indent=1).encode(),
        "summary.md": markdown(summary).encode(),
        "results.parquet": _parquet(rows, summary),
        "report.html": page(folder, summary, rows).encode(),
    }
    for name, data in files.items():
        try:
            write_file(folder / name, data)
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be written ({reason(error)})") from error
    return folder / "report.html"


def markdown(summary: Summary) -> str:
    """Settings, tables, and what the metrics mean."""
    settings = "\n".join(f"- {escape_cell(name)}: {escape_cell(value)}" for name, value in _facts(summary).items())
    meanings = [f"- {escape_cell(m['label'])}: {escape_cell(m['meaning'])}" for m in summary["metrics"]]
    found = [table.markdown() for table in tables.all_tables(summary)]
    return "\n".join(["# Evaluation", "", settings, "", *found, "### What the metrics mean", "", *meanings, ""])


def page(folder: Path, summary: Summary, rows: Sequence[Row]) -> str:
    """The whole report as HTML that needs no other file."""
    by_pair: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_pair.setdefault(row["pair"], {})[row["method"]] = row
    methods, metrics = list(summary["methods"]), summary["metrics"]
    names = [metric["name"] for metric in metrics]
    data = {
        "values": {
            printable(pair): {
                printable(name): {m: row[m] for m in names if row.get(m) is not None} for name, row in found.items()
            }
            for pair, found in by_pair.items()
        },
        "higher": [metric["name"] for metric in metrics if metric["better"] == "higher"],
    }
    first = next((name for name in methods if name not in (*TRIVIAL, summary["baseline"])), methods[0])
    template = Template(resources.files("splice_ff.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        columns=2 + len(methods),
        settings=_definitions(_facts(summary)),
        plots=_plots(summary),
        tables="".join(table.html() for table in tables.all_tables(summary)),
        meanings=_definitions({metric["label"]: metric["meaning"] for metric in metrics}),
        problems=_problems(summary),
        metric_options="".join(_option(metric["name"], metric["label"]) for metric in metrics),
        method_options="".join(_option(name, name, name == first) for name in methods),
        domain_options="".join(_option(domain, domain) for domain in summary["domains"]),
        pairs="".join(_pair(folder, pair, found, methods) for pair, found in by_pair.items()),
        data=json.dumps(data).replace("<", "\\u003c"),  # no name can end the script element
    )


def _facts(summary: Summary) -> dict[str, str]:
    facts = {k: ", ".join(v) if isinstance(v, list) else str(v) for k, v in summary["settings"].items() if v}
    domains = ", ".join(f"{domain} {n}" for domain, n in summary["domains"].items())
    return facts | {"pairs": f"{summary['pairs']} ({domains})", "baseline": summary["baseline"]}


def _plots(summary: Summary) -> str:
    figures = [
        ("Quality against time", plots.quality_against_time(summary), ""),
        ("Layout against look", plots.layout_against_look(summary), ""),
    ]
    if gaps := plots.gap_by_domain(summary):
        title = f"Gap closed from {summary['floor']} (0) to {summary['baseline']} (1), by domain"
        figures.append((title, gaps, "wide"))
    return "".join(
        f"<figure class='{kind}' role='img' aria-label='{escape(title)}'><h3>{escape(title)}</h3>{svg}</figure>"
        for title, svg, kind in figures
    )


def _problems(summary: Summary) -> str:
    if not summary["errors"]:
        return ""
    items = "".join(
        f"<li>{escape(e['pair'])}, {escape(e['method'])}: {escape(e['error'])}</li>" for e in summary["errors"]
    )
    return f"<h3>What could not be measured</h3><ul>{items}</ul>"


def _pair(folder: Path, name: str, found: Mapping[str, Row], methods: Sequence[str]) -> str:
    any_row = next(iter(found.values()))
    figures = [
        _figure(role, _thumbnail(Path(any_row[f"{role}_file"])), "not readable") for role in ("structure", "appearance")
    ]
    for method in methods:
        row = found.get(method)
        source = _thumbnail(folder / row["image"]) if row and row["image"] else None
        figures.append(_figure(method, source, "not measured" if row else "no image", is_method=True))
    domain = escape(any_row["domain"])
    return (
        f'<article class="pair" data-pair="{escape(name)}" data-domain="{domain}">'
        f"<h4>{escape(name)} <span>{domain}</span></h4><div class='strip'>{''.join(figures)}</div></article>"
    )


def _figure(name: str, source: str | None, otherwise: str, is_method: bool = False) -> str:
    label = escape(name)
    shown = f'<img src="{source}" alt="{label}" loading="lazy">' if source else f'<div class="none">{otherwise}</div>'
    if not is_method:
        return f"<figure>{shown}<figcaption>{label}</figcaption></figure>"
    return f'<figure data-method="{label}">{shown}<figcaption>{label}<output></output></figcaption></figure>'


def _thumbnail(path: Path) -> str | None:
    """A small WebP as a data URI; None where the image cannot be read (its row says why)."""
    try:
        image: Image.Image = TF.to_pil_image(load_image(path).rgb[0])
    except InputError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = BytesIO()
    image.save(data, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _definitions(facts: Mapping[str, str]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())


def _option(value: str, label: str, is_chosen: bool = False) -> str:
    return f'<option value="{escape(value)}"{" selected" * is_chosen}>{escape(label)}</option>'


def _parquet(rows: Sequence[Row], summary: Summary) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("pair", "domain", "method", "structure_file", "appearance_file", "image", "error")
    numbers = ("seconds", *(metric["name"] for metric in summary["metrics"]))
    columns = {
        k: pa.array([row[k] if row[k] is None else printable(row[k]) for row in rows], pa.string()) for k in texts
    }
    columns |= {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in numbers}
    data = BytesIO()
    pq.write_table(pa.table(columns), data)
    return data.getvalue()
