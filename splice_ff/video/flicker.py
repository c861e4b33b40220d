"""How much more a painted video changes from frame to frame than the video that it was painted from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splice_ff.errors import VideoError
from splice_ff.video.files import read_frames


@dataclass(frozen=True)
class Flicker:
    """Mean absolute differences of consecutive frames, over all pixels, channels and pairs of frames.

    Nothing is warped: motion counts in both videos. In levels of 255; 0 for a video of one frame. A look with more
    contrast than the structure video's own moves more levels by the same motion, which is no flicker: compare looks by
    `excess`, and a look with itself at other settings by `ratio`.
    """

    structure: float
    output: float

    @property
    def excess(self) -> float:
        """Levels by which the output changes more than the structure video; negative if it changes less."""
        return self.output - self.structure

    @property
    def ratio(self) -> float:
        """Change of the output by that of the structure video: 1 adds nothing. Infinite if only the output changes."""
        if self.structure:
            return self.output / self.structure
        return float("inf") if self.output else 1.0


def flicker_of(structure: Iterable[NDArray[np.uint8]], output: Iterable[NDArray[np.uint8]]) -> Flicker:
    """Flicker of frames (H, W, 3), as many of one size in both.

    Examples:
        >>> still, blinking = np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 3), np.uint8)
        >>> blinking[1] = 10
        >>> flicker_of(still, blinking).excess
        10.0

    Raises:
        ValueError: other numbers of frames, or other sizes.
    """
    changes = np.zeros(2)
    pairs = 0
    before: tuple[NDArray[np.int16], ...] = ()
    for frames in zip_longest(structure, output):
        if any(frame is None for frame in frames) or frames[0].shape != frames[1].shape:
            raise ValueError("the videos have other numbers of frames, or frames of other sizes")
        now = tuple(frame.astype(np.int16) for frame in frames)
        if before:
            changes += [np.abs(new - old).mean() for new, old in zip(now, before, strict=True)]
            pairs += 1
        before = now
    return Flicker(*(float(change) for change in changes / max(1, pairs)))


def measure_flicker(structure: Path, output: Path) -> Flicker:
    """Flicker of a video file that was painted from another: of its frames as they are shown, compression included.

    Raises:
        VideoError: a file that cannot be read, or videos that are not frame by frame of one size.
    """
    try:
        return flicker_of(*((frame.pixels for frame in read_frames(path)) for path in (structure, output)))
    except VideoError:
        raise
    except ValueError as error:
        raise VideoError(f"{output}: cannot be compared with {structure}: {error}") from error
