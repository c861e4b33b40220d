"""From rows to the numbers that are shown: one dictionary, which `summary.json` holds as it is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from splice_ff.errors import InputError
from splice_ff.evaluation.bootstrap import MIN_PAIRS, Values, gap_closed, mean, paired_difference
from splice_ff.evaluation.judges import Distance
from splice_ff.evaluation.metrics import Metric
from splice_ff.evaluation.perceptual import SetDistances
from splice_ff.evaluation.rows import Row

FLOOR = "copy"
"""The method from which the gap to the baseline is counted."""


def summarize(
    rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[Metric], baseline: str, settings: Mapping[str, Any],
    sets: Mapping[str, Mapping[str, float]] | None = None,
    kernel_distances: Mapping[str, Mapping[str, Mapping[str, Distance]]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Means, paired differences to the baseline, gaps closed; over all pairs and by domain.

    Args:
        rows: as `splice_ff.evaluation.rows.read_rows` gives them.
        methods: those to show, in their order.
        metrics: what was measured.
        baseline: one of the methods.
        settings: what the rows were made with, to be shown.
        sets: what `distances_of_sets` found, if it could be measured.
        kernel_distances: by judge, domain and method.

    Returns:
        A dictionary for JSON. Estimates are `{"value", "low", "high", "n"}`; differences have `wins` besides. A metric
        that no pair of a method has is left out.

    Raises:
        InputError: the baseline is not among the methods, or there are no rows without error.
    """
    if baseline not in methods:
        raise InputError(f"the baseline '{baseline}' is not among the methods: {', '.join(methods)}")
    good = [row for row in rows if row["method"] in methods and not row["error"]]
    if not good:
        reasons = sorted({row["error"] for row in rows if row["error"]})
        raise InputError(f"nothing could be measured ({reasons[0] if reasons else 'no pairs'})")
    domains = sorted({row["domain"] for row in good})
    looks = [m for m in metrics if m.about == "look" or m.name == "objective"]
    return {
        "settings": dict(settings),
        "baseline": baseline,
        "floor": FLOOR if FLOOR in methods and baseline != FLOOR else None,
        "pairs": len({row["pair"] for row in good}),
        "domains": {d: len({row["pair"] for row in good if row["domain"] == d}) for d in domains},
        "metrics": [asdict(metric) for metric in metrics],
        "methods": {
            name: {
                "pairs": sum(row["method"] == name for row in good),
                "seconds": _median(row["seconds"] for row in good if row["method"] == name),
                "means": _means(good, name, metrics),
                "differences": _differences(good, name, metrics, baseline),
                "by_domain": {d: _means(_in(good, d), name, metrics) for d in domains},
                "gap_closed": _gaps(good, name, looks, baseline),
                "gap_closed_by_domain": {d: _gaps(_in(good, d), name, looks, baseline) for d in domains},
                "sets": dict((sets or {}).get(name, {})),
            }
            for name in methods
        },
        "kernel_distances": {
            judge: {domain: {m: asdict(d) for m, d in by_method.items()} for domain, by_method in by_domain.items()}
            for judge, by_domain in (kernel_distances or {}).items()
        },
        "errors": [{k: row[k] for k in ("pair", "method", "error")} for row in rows if row["error"]],
    }


def distances_of_sets(
    rows: Sequence[Row], methods: Sequence[str], folder: Path, measure: SetDistances
) -> dict[str, dict[str, float]]:
    """FID and KID of each method's images to the appearance images, on the pairs that all these methods have.

    Empty where there are fewer than `MIN_PAIRS` such pairs.
    """
    found = {(row["pair"], row["method"]): row for row in rows if not row["error"]}
    common = sorted({pair for pair, _ in found if all((pair, name) in found for name in methods)})
    if len(common) < MIN_PAIRS:
        return {}
    ours = {name: [folder / found[pair, name]["image"] for pair in common] for name in methods}
    theirs = [Path(found[pair, methods[0]]["appearance_file"]) for pair in common]
    return {name: {**distances, "pairs": len(common)} for name, distances in measure(ours, theirs).items()}


def values(rows: Iterable[Row], method: str, metric: str) -> Values:
    """A metric of a method by pair."""
    return {row["pair"]: row[metric] for row in rows if row["method"] == method and row.get(metric) is not None}


def _means(rows: Sequence[Row], method: str, metrics: Sequence[Metric]) -> dict[str, Any]:
    found = {m.name: list(values(rows, method, m.name).values()) for m in metrics}
    return {name: asdict(mean(numbers)) for name, numbers in found.items() if numbers}


def _differences(rows: Sequence[Row], method: str, metrics: Sequence[Metric], baseline: str) -> dict[str, Any]:
    if method == baseline:
        return {}
    found = {
        m.name: paired_difference(values(rows, method, m.name), values(rows, baseline, m.name), m.sign) for m in metrics
    }
    return {name: asdict(difference) for name, difference in found.items() if difference}


def _gaps(rows: Sequence[Row], method: str, metrics: Sequence[Metric], baseline: str) -> dict[str, Any]:
    if method in (FLOOR, baseline):
        return {}
    found = {m.name: gap_closed(*(values(rows, x, m.name) for x in (method, FLOOR, baseline))) for m in metrics}
    return {name: asdict(gap) for name, gap in found.items() if gap}


def _in(rows: Sequence[Row], domain: str) -> list[Row]:
    return [row for row in rows if row["domain"] == domain]


def _median(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None
