"""Times of pieces of work, with the operations that they take and the least time that those could take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from splice_ff.benchmark.floor import count_operations

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Repeats of one piece of work."""

    seconds: tuple[float, ...]
    """Of each repeat."""
    operations: int
    """Floating-point operations of its matrix products, convolutions and attention."""
    rate: float
    """Operations a second that the device reaches in a large matrix product of the same number format."""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def floor(self) -> float:
        """Seconds that the operations would take at that rate; 0 where there are none to count."""
        return self.operations / self.rate

    @property
    def share(self) -> float:
        """Of the time, what the floor is: 1 is as fast as can be."""
        return self.floor / self.median

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, _, high = statistics.quantiles(self.seconds, method="inclusive") if len(self.seconds) > 1 else (None,) * 3
        return {
            "seconds": list(self.seconds),
            "median": self.median,
            "quartiles": [low, high],
            "slowest": max(self.seconds),
            "operations": self.operations,
            "floor": self.floor,
            "floor_share": self.share,
        }


def time_in_turn(
    works: Mapping[str, Work], repeats: int, device: torch.device, rates: Mapping[str, float], *, again: bool = False
) -> dict[str, Timing]:
    """Time pieces of work in turn, so that a drift in the machine's speed meets all alike.

    Args:
        works: what to do, by name; each round does all of them in this order.
        repeats: rounds that count. One before them counts operations and sets the kernels up.
        device: where they compute.
        rates: operations a second by name, for the floor.
        again: another round before those that count; for compiled work, whose operations are counted uncompiled.
    """
    operations = {name: count_operations(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + again):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, device))
    return {name: Timing(tuple(times[-repeats:]), operations[name], rates[name]) for name, times in seconds.items()}


def sum_of(timings: Mapping[str, Timing], rate: float) -> Timing:
    """All of the timings as one, round by round."""
    rounds = zip(*(timing.seconds for timing in timings.values()), strict=True)
    return Timing(tuple(map(sum, rounds)), sum(t.operations for t in timings.values()), rate)


def seconds_of(work: Work, device: torch.device) -> float:
    """Seconds that it takes, until the device is done."""
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
