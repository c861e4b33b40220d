"""A video painted frame by frame with one look: in parts, so that a stopped run goes on from there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splice_ff.errors import InputError, VideoError
from splice_ff.one_shot.call import images_a_pass
from splice_ff.one_shot.checks import check_size, check_strength
from splice_ff.one_shot.model import OneShotModel
from splice_ff.utils.files import atomic_write, reason
from splice_ff.utils.run_folder import claim_folder, lock_folder
from splice_ff.video.files import (
    RECORD,
    Frame,
    VideoInfo,
    check_output,
    parts_folder,
    read_frames,
    read_info,
    write_frames,
)
from splice_ff.video.flicker import Flicker, measure_flicker
from splice_ff.video.join import FrameTimes, join_parts

PART = 96
"""Frames of a part: what a stopped run loses, at most."""


@dataclass(frozen=True)
class StylizedVideo:
    """What `stylize_video` made."""

    path: Path
    frames: int
    flicker: Flicker


def stylize_video(
    model: OneShotModel,
    video: Path,
    appearance_tokens: Tensor,
    output: Path,
    *,
    size: int | None = None,
    strength: float = 1.0,
    batch_size: int = 8,
    facts: Mapping[str, str] | None = None,
    callback: Callable[[], object] | None = None,
) -> StylizedVideo:
    """Paint a video's frames with one look; size, times of frames and sound stay.

    Finished parts are in the folder `OUTPUT.parts` until the video is done: called again, after an interruption, it
    goes on from there. Each frame is painted alone: nothing holds it to its neighbors but that the same network gets
    nearly the same image.

    Args:
        model: the one-shot model.
        video: the structure video.
        appearance_tokens: the look, (1, M, C), as `model.embed` or `splice_ff.one_shot.tokens_file.load_look` gives it.
        output: an .mp4, .mov or .mkv that is not there yet.
        size, strength: see `OneShotModel.paint`.
        batch_size: frames that are painted together, at most; fewer of large ones.
        facts: what made it, for the file.
        callback: called after each frame.

    Raises:
        VideoError: a video that cannot be read, or an output that cannot be written; the message says why.
        InputError: what `OneShotModel.paint` raises.
    """
    info = read_info(video)
    check_output(output, info)
    size = check_size(model.config.size if size is None else size, (info.height, info.width))
    parts = parts_folder(output)
    status = video.stat()
    settings = {
        "video": f"{video.name}, {status.st_size} bytes, changed at {status.st_mtime_ns}",
        "look_sha256": sha256(appearance_tokens.float().cpu().numpy().tobytes()).hexdigest()[:16],
        **model.identity,
        "dtype": str(model.dtype),
        "size": size,
        "strength": check_strength(strength),
    }
    with lock_folder(parts):
        try:
            claim_folder(parts / RECORD, settings, holds="parts of a video")
        except InputError as error:
            raise VideoError(f"{error}; or remove {parts}") from error
        try:
            batch_size = min(batch_size, images_a_pass(info.height, info.width, size))
            paint = partial(_painted, model, appearance_tokens, size, strength, batch_size)
            files, times = _paint_parts(video, info, parts, paint, callback or (lambda: None))
            write = partial(join_parts, files, times, info, video, facts=dict(facts or {}))
            atomic_write(output, write)
        except VideoError:  # a damaged video: nothing that could go on
            shutil.rmtree(parts, ignore_errors=True)
            raise
        except OSError as error:
            raise VideoError(f"{output}: cannot be written ({reason(error)}); choose another place") from error
    shutil.rmtree(parts)
    return StylizedVideo(output, len(times.times), measure_flicker(video, output))


def _paint_parts(
    video: Path,
    info: VideoInfo,
    folder: Path,
    paint: Callable[[Iterator[Frame]], Iterator[NDArray[np.uint8]]],
    callback: Callable[[], object],
) -> tuple[list[Path], FrameTimes]:
    """Files of `PART` frames each, those that are there kept; and the times of all frames."""
    times = FrameTimes(info)
    files: list[Path] = []

    def noted() -> Iterator[Frame]:
        for frame in read_frames(video):
            times.add(frame)
            yield frame
            callback()

    frames = noted()
    while (first := next(frames, None)) is not None:
        part = chain([first], islice(frames, PART - 1))
        files.append(folder / f"{len(files):06}.mkv")
        if files[-1].exists():
            for _ in part:
                pass
        else:
            atomic_write(files[-1], partial(_write_part, paint(part), info))
    return files, times


def _write_part(frames: Iterator[NDArray[np.uint8]], info: VideoInfo, path: Path) -> None:
    write_frames(path, frames, info)


def _painted(
    model: OneShotModel, tokens: Tensor, size: int, strength: float, batch_size: int, frames: Iterator[Frame]
) -> Iterator[NDArray[np.uint8]]:
    while group := [frame.pixels for frame in islice(frames, batch_size)]:
        structure = torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2).to(model.device, torch.float32) / 255
        painted = model.paint(structure, tokens, size=size, strength=strength)
        yield from (painted * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
