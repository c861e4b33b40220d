"""The terminal: streams that may be missing, progress bars, quiet, and being asked to stop without losing anything."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class ForgivingStream:
    """A stream whose reader may go away: what can no longer be written is lost, and the work goes on."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody still listens."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def mend_streams() -> None:
    """Make stdout and stderr fit to write to, for a program's first line.

    Services and `pythonw` start programs without them, terminals are closed, and an ASCII locale cannot show all
    letters: none of that is a reason to end a run.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115 (for good)
            setattr(sys, name, stream)
        if name == "stdin":
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        if name == "stderr":  # stdout carries results: whoever closes it wants the program to end
            sys.stderr = ForgivingStream(stream)


def hush_libraries(quiet: bool) -> None:
    """Keep other libraries' warnings from people, who cannot act on them; if quiet, their progress and logs as well.

    Call it before they are imported. What `python -W` or PYTHONWARNINGS ask for is left on.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if quiet:
        os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        logging.disable(logging.WARNING)


def progress_bar(total: int | None, unit: str, quiet: bool, initial: int = 0, what: str | None = None) -> tqdm:  # type: ignore[type-arg]
    """A bar on stderr; where that is a file, a line now and then instead of an animation.

    Args:
        total: units of the whole job; None where nobody knows.
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
