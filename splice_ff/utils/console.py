"""The progress bar that every long job shows, and being asked to stop without losing what is under way."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, unit: str, quiet: bool, initial: int = 0, what: str | None = None) -> tqdm:  # type: ignore[type-arg]
    """A bar on stderr; where that is a file, a line now and then instead of an animation.

    Args:
        total: units of the whole job.
        unit: what is counted, in the singular.
        quiet: no bar.
        initial: units done before.
        what: the name of the job, where there are several.
    """
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=initial, disable=quiet, unit=unit, desc=what, mininterval=interval)


@contextmanager
def noted_signals(impatient: bool = False) -> Iterator[list[int]]:
    """While inside, SIGTERM and ctrl-C only add their number to the list; whoever is inside looks there and stops.

    `impatient`: a second one raises KeyboardInterrupt. Outside the main thread, where Python lets nobody listen to
    signals, the list stays empty.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, _: Any) -> None:
        if noted and impatient:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
