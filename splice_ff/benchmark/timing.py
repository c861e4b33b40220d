"""Times of pieces of work, with the operations that they take and the least time that those could take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from splice_ff.benchmark.floor import count_operations, operation_counter
from splice_ff.utils.machine import synchronize

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
        return self.floor / self.median if self.operations else 0.0

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


class Sections:
    """Splits work into named sections, wherever in it they run; a section inside another counts to the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._totals: dict[str, float] = {}
        self._clock: Callable[[], float] = lambda: 0.0
        self._start, self._depth = 0.0, 0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What runs inside belongs to this section."""
        self._enter()
        try:
            yield
        finally:
            self._leave(name)

    @contextmanager
    def watch(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """While inside, the forward passes of these modules are sections."""
        handles = []
        for name, module in modules.items():
            # not compiled: the clock would be read while compiling
            enter = torch.compiler.disable(lambda *_: self._enter())
            leave = torch.compiler.disable(lambda *_, name=name: self._leave(name))
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def time(self, work: Work, repeats: int, rate: float, *, again: bool = False) -> dict[str, Timing]:
        """Time the work and its sections; arguments as of `time_in_turn`.

        Returns:
            "all", each section in the order of its first appearance, and "rest".
        """
        with operation_counter() as counter:
            operations = self._measure(work, counter)
        rounds = [self._measure(work, self._seconds) for _ in range(repeats + again)][-repeats:]
        return {name: Timing(tuple(r[name] for r in rounds), int(n), rate) for name, n in operations.items()}

    def _measure(self, work: Work, clock: Callable[[], float]) -> dict[str, float]:
        self._clock, self._totals, self._depth = clock, {}, 0
        start = clock()
        work()
        whole = clock() - start
        return {"all": whole, **self._totals, "rest": whole - sum(self._totals.values())}

    def _seconds(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def _enter(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._start = self._clock()

    def _leave(self, name: str) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._totals[name] = self._totals.get(name, 0) + self._clock() - self._start


def seconds_of(work: Work, device: torch.device) -> float:
    """Seconds that it takes, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
