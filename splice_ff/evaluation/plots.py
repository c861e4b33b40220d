"""The plots of a report, as SVG text."""

from __future__ import annotations

import math
import warnings
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from splice_ff.errors import printable

Summary = dict[str, Any]
NO_TIME = 1e-3
"""Seconds under which a method is drawn as a level rather than as a point in time."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f", "#8c564b", "#999933")
"""Okabe and Ito's, told apart by color-blind readers, and some more."""


def quality_against_time(summary: Summary) -> str:
    """The objective against seconds a pair; what took no time, or unknown time, as level lines."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for color, (name, method) in zip(_colors(summary), summary["methods"].items(), strict=True):
        estimate, seconds = method["means"].get("objective"), method["seconds"]
        if not estimate:
            continue
        if seconds is None or seconds < NO_TIME:
            what = "time unknown" if seconds is None else "no time"
            axes.axhline(
                estimate["value"], color=color, linestyle="--", linewidth=1.2, label=_label(f"{name} ({what})")
            )
        else:
            axes.errorbar(
                seconds, estimate["value"], yerr=_bars([estimate]), fmt="o", capsize=3, color=color, label=_label(name)
            )
    if any((m["seconds"] or 0) >= NO_TIME for m in summary["methods"].values()):
        axes.set_xscale("log")
        axes.set_xlabel("seconds a pair (median)")
    else:
        axes.set_xticks([])
        axes.set_xlabel("no method took time")
    axes.set_ylabel("objective (lower is better)")
    return _svg(figure, axes)


def layout_against_look(summary: Summary) -> str:
    """Self-sim against the [CLS] cosine: methods towards the upper left keep the layout and take the look."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for color, (name, method) in zip(_colors(summary), summary["methods"].items(), strict=True):
        x, y = (method["means"].get(metric) for metric in ("self_sim", "cls_cosine"))
        if x and y:
            axes.errorbar(
                x["value"],
                y["value"],
                xerr=_bars([x]),
                yerr=_bars([y]),
                fmt="o",
                capsize=3,
                color=color,
                label=_label(name),
            )
    axes.set_xlabel("self-sim to the structure image (lower is better)")
    axes.set_ylabel("CLS cosine to the appearance\nimage (higher is better)")
    return _svg(figure, axes)


def gap_by_domain(summary: Summary) -> str | None:
    """Bars of the gap closed, a panel for each metric; None without a floor or where no gap is certain."""
    methods = {name: m for name, m in summary["methods"].items() if m["gap_closed"]}
    names = [
        m["name"] for m in summary["metrics"] if any(m["name"] in method["gap_closed"] for method in methods.values())
    ]
    if not names:
        return None
    labels = {m["name"]: m["label"] for m in summary["metrics"]}
    domains = ["all", *summary["domains"]] if len(summary["domains"]) > 1 else ["all"]
    color_of = dict(zip(summary["methods"], _colors(summary), strict=True))
    rows = math.ceil(len(names) / 2)
    figure = Figure(figsize=(12, 2.6 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    panels, unused = grid[: len(names)], grid[len(names) :]
    for axes in unused:
        axes.set_visible(False)
    for axes, metric in zip(panels, names, strict=True):
        for i, (name, method) in enumerate(methods.items()):
            width = 0.8 / len(methods)
            gaps = [
                (method["gap_closed"] if d == "all" else method["gap_closed_by_domain"][d]).get(metric) for d in domains
            ]
            known = [(j + (i + 0.5) * width - 0.4, gap) for j, gap in enumerate(gaps) if gap]
            if not known:
                continue
            places, estimates = zip(*known, strict=True)
            axes.bar(
                places, [e["value"] for e in estimates], width * 0.9, yerr=_bars(list(estimates)), capsize=2,
                color=color_of[name], label=_label(name), error_kw={"linewidth": 0.8},
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_ylabel(labels[metric])
        axes.set_xticks(range(len(domains)), [_label(domain) for domain in domains])
        axes.set_xlim(-0.5, len(domains) - 0.5)  # bars that are not certain leave a place free, not a smaller plot
        axes.spines[["top", "right"]].set_visible(False)
    handles, names_shown = max((axes.get_legend_handles_labels() for axes in panels), key=lambda pair: len(pair[1]))
    figure.legend(handles, names_shown, loc="outside upper left", ncols=len(names_shown), frameon=False)
    return _svg(figure, None)


def _bars(estimates: list[dict[str, Any]]) -> list[list[float]] | None:
    """Lengths of error bars down and up; none where an interval is not known."""
    if any(e["low"] is None for e in estimates):
        return None
    # A percentile interval need not hold the estimate itself, and matplotlib takes no negative lengths.
    down = [max(0.0, e["value"] - e["low"]) for e in estimates]
    return [down, [max(0.0, e["high"] - e["value"]) for e in estimates]]


def _label(name: str) -> str:
    """A name as matplotlib shows it: $ begins a formula, and a label with a leading _ is left out of legends."""
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _colors(summary: Summary) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(summary["methods"]))]


def _svg(figure: Figure, axes: Axes | None) -> str:
    if axes is not None:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
    text = StringIO()
    # Outlines instead of text: they look alike whatever fonts the reader has. The salt makes ids reproducible.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "splice-ff"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks are drawn as boxes
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
