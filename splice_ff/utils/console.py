"""The progress bar that every long job shows."""

from __future__ import annotations

import sys

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
