"""Parts of a video into one file: their packets as they are, the original's times, and its sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from heapq import merge
from pathlib import Path
from typing import Any

from splice_ff.errors import VideoError
from splice_ff.video.files import SUFFIXES, Frame, VideoInfo, audio_streams, open_video, writing

OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder"}
"""Entries that describe the original's file, not the video."""


class FrameTimes:
    """When each frame is shown, and for how long, in units of the original's time base.

    Args:
        info: of the original; frames without a time follow at its rate.
    """

    def __init__(self, info: VideoInfo) -> None:
        self.step = max(1, round(1 / (info.rate * info.time_base)))
        self.times: list[tuple[int, int]] = []

    def add(self, frame: Frame) -> None:
        """Note the next frame. One that a damaged file puts before its predecessor comes right after that."""
        after = self.times[-1][0] if self.times else None
        time = frame.time if frame.time is not None else 0 if after is None else after + self.step
        self.times.append((time if after is None else max(time, after + 1), frame.duration or self.step))


def join_parts(
    parts: Sequence[Path], times: FrameTimes, info: VideoInfo, original: Path, output: Path, facts: Mapping[str, str]
) -> None:
    """Write parts by `write_frames` into one file.

    Args:
        parts: in order; together they have as many frames as `times`.
        times: of the frames.
        info: of the original.
        original: its sound is copied, packet by packet.
        output: the file, of a suffix in `SUFFIXES`.
        facts: what made it; kept as the file's comment.

    Raises:
        VideoError: parts with more or fewer frames, or damaged ones.
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_video(original))
        first = stack.enter_context(open_video(parts[0]))
        target = stack.enter_context(writing(output, SUFFIXES[output.suffix.lower()]))
        target.metadata.update({name: text for name, text in source.metadata.items() if name not in OF_THE_FILE})
        target.metadata["comment"] = "; ".join(f"{name}: {value}" for name, value in facts.items())
        video = target.add_stream_from_template(first.streams.video[0])
        video.time_base = info.time_base
        audio = {stream.index: target.add_stream_from_template(stream) for stream in audio_streams(source)}
        for packet in merge(_video(parts, times, info, video), _audio(original, audio), key=_seconds):
            target.mux(packet)


def _video(parts: Sequence[Path], times: FrameTimes, info: VideoInfo, stream: Any) -> Iterator[Any]:
    when = iter(times.times)
    for part in parts:
        with open_video(part) as container:
            for packet in container.demux(video=0):
                if packet.dts is None:  # the end
                    continue
                time, duration = next(when, (None, 0))
                if time is None:
                    raise VideoError(f"{part.parent}: holds more frames than the video; start again")
                packet.pts = packet.dts = time
                packet.duration, packet.time_base, packet.stream = duration, info.time_base, stream
                yield packet
    if next(when, None):
        raise VideoError(f"{parts[0].parent}: holds fewer frames than the video; start again")


def _audio(original: Path, streams: Mapping[int, Any]) -> Iterator[Any]:
    with open_video(original) as source:
        for packet in source.demux(audio_streams(source)) if streams else ():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                yield packet


def _seconds(packet: Any) -> float:
    return float(packet.dts * packet.time_base)
