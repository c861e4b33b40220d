"""What many pairs say together: means with intervals, paired differences and their p values, the gap closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
MIN_PAIRS = 5
"""Fewer pairs have too few different resamples for an interval."""
Values = Mapping[str, float]
"""A metric of one method, by pair."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; the ends are None where too few pairs allow none."""

    value: float
    low: float | None
    high: float | None
    n: int
    """Pairs that it rests on."""


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean of a method's value minus the baseline's on the same pairs."""

    wins: float
    """Share of those pairs on which the method is better; a tie counts half."""


def mean(values: Sequence[float]) -> Estimate:
    """Mean over pairs with a percentile-bootstrap interval (Efron and Tibshirani, 1993), pairs resampled.

    Raises:
        ValueError: no values.
    """
    array = np.asarray(values, dtype=float)
    if not array.size:
        raise ValueError("no values to average")
    return Estimate(float(array.mean()), *_interval(array[_resampled(len(array))].mean(1), len(array)), len(array))


def paired_difference(ours: Values, baseline: Values, sign: int) -> Difference | None:
    """A method against the baseline on the pairs that both have; None without such pairs.

    `sign` is 1 where more is better and -1 where less is.
    """
    common = [pair for pair in ours if pair in baseline]
    if not common:
        return None
    differences = np.array([ours[pair] - baseline[pair] for pair in common])
    wins = float((differences * sign > 0).mean() + (differences == 0).mean() / 2)
    estimate = mean(differences.tolist())
    return Difference(estimate.value, estimate.low, estimate.high, estimate.n, wins)


def gap_closed(ours: Values, floor: Values, goal: Values) -> Estimate | None:
    """How far a method comes from the floor's mean (0) to the goal's (1), on the pairs that all three have.

    None where there are no such pairs, or where floor and goal are not told apart: a ratio to a gap that could be 0
    means nothing.
    """
    common = [pair for pair in ours if pair in floor and pair in goal]
    gap = paired_difference({p: goal[p] for p in common}, floor, 1)
    if gap is None or gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return None
    came = np.array([ours[p] - floor[p] for p in common])
    whole = np.array([goal[p] - floor[p] for p in common])
    sample = _resampled(len(common))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = came[sample].mean(1) / whole[sample].mean(1)
    ratios = ratios[np.isfinite(ratios)]  # a sample in which floor and goal do not differ has no ratio
    return Estimate(float(came.mean() / whole.mean()), *_interval(ratios, len(common)), len(common))


def permutation_p_value(shares: Sequence[float]) -> float:
    """Two-sided p value of a paired permutation test (Good, 1994): how likely a difference as large is by chance.

    If two methods were alike, each pair's two outputs could change places, which turns its share's sign.

    Args:
        shares: what each pair adds to the difference.

    Returns:
        In (0, 1]; `RESAMPLES` draws of signs, the same at every call.
    """
    array = np.asarray(shares, dtype=float)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(RESAMPLES, len(array)))
    as_large = np.abs(signs @ array) >= abs(array.sum()) * (1 - 1e-9)  # sums in another order round differently
    return float((1 + as_large.sum()) / (1 + RESAMPLES))


def _resampled(n: int) -> NDArray[np.int64]:
    """Indices of `RESAMPLES` samples with replacement, the same at every call."""
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def _interval(estimates: NDArray[np.float64], n: int) -> tuple[float | None, float | None]:
    if n < MIN_PAIRS:
        return None, None
    low, high = np.quantile(estimates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
