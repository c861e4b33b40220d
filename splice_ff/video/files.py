"""Video files through PyAV: what is in one, its frames as they are shown, and writing frames. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from splice_ff.errors import VideoError
from splice_ff.images import SUFFIXES as IMAGE_SUFFIXES
from splice_ff.images.formats import check_size
from splice_ff.utils.files import check_place, reason

SUFFIXES = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""What can be written: H.264 with the sound of the original."""
READERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"
"""FFmpeg's readers of video files. Its others read playlists, naming further files, or take any text for a video."""
HDR_CURVES = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
"""PQ and HLG."""
RECORD = "video.json"
"""In a folder of parts: the settings that they were made with."""
CODEC_OPTIONS = {"crf": "18", "bf": "0"}
"""Near the eye's limit; and no frame that refers to a later one, so that packets keep the order of frames."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds."""

    height: int
    """As it is shown: rotation applied."""
    width: int
    rate: Fraction
    """Frames a second, on average."""
    frames: int
    """As its header says; 0 where that says nothing."""
    time_base: Fraction
    """Seconds: the unit of frames' times."""
    pixel_aspect: Fraction
    """Width of a pixel by its height, as it is shown."""
    audio: tuple[str, ...]
    """Codecs of its audio streams, without those that FFmpeg does not know; if it knows none, "unknown" for each."""
    unknown_audio: int = 0
    """Audio streams that FFmpeg does not know, such as spatial sound beside plain; they cannot be copied."""
    is_hdr: bool = False
    """Brightness is coded as PQ or HLG (ITU-R BT.2100); frames are read without tone mapping."""
    has_alpha: bool = False
    """It is transparent in places; frames are read, and written, opaque."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame as it is shown."""

    pixels: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    time: int | None
    """In units of the file's time base; None where the file does not say."""
    duration: int
    """Likewise; 0 where the file does not say."""


def read_info(path: Path) -> VideoInfo:
    """Find out what a video file holds, by its header and its first frame.

    Raises:
        VideoError: it is missing, a folder, no regular file, empty, unreadable, not a video or damaged.
        splice_ff.errors.ImageError: its frames are too small or too large.
    """
    with open_video(path) as container:
        stream = video_stream(path, container)
        check_size(stream.codec_context.height, stream.codec_context.width, str(path))  # before memory is taken
        first = next(container.decode(stream), None)
        if first is None:
            raise VideoError(f"{path}: no frame can be read; download or export it again")
        turned = first.rotation % 180 != 0
        height, width = (first.width, first.height) if turned else (first.height, first.width)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        audio = tuple(known.codec_context.name for known in audio_streams(container))
        unknown = len(container.streams.audio) - len(audio)
        return VideoInfo(
            height,
            width,
            stream.average_rate or stream.guessed_rate or Fraction(25),
            stream.frames,
            stream.time_base,
            1 / aspect if turned else aspect,
            audio or ("unknown",) * unknown,
            unknown,
            stream.codec_context.color_trc in HDR_CURVES,
            any(part.is_alpha for part in first.format.components) or stream.metadata.get("alpha_mode") == "1",
        )


def read_frames(path: Path) -> Iterator[Frame]:
    """All frames of the first video stream, one at a time.

    Raises:
        VideoError: what `read_info` raises; the file is damaged, or its frames change their size.
    """
    with open_video(path) as container:
        stream = video_stream(path, container)
        stream.thread_type = "AUTO"
        shape = None
        for frame in container.decode(stream):
            pixels = frame.to_ndarray(format="rgb24")
            if frame.rotation:  # counterclockwise, in degrees: telephones film sideways and say so
                pixels = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise VideoError(f"{path}: its frames change their size; export it at one size")
            yield Frame(pixels, frame.pts, frame.duration or 0)


def write_frames(path: Path, frames: Iterable[NDArray[np.uint8]], info: VideoInfo) -> None:
    """Write frames (H, W, 3) as H.264 without sound, a frame each 1/`info.rate` seconds.

    Sides that are odd need color at full resolution (4:4:4), which some players lack.
    """
    with writing(path, "matroska") as container:
        stream = container.add_stream("libx264", rate=info.rate, options=CODEC_OPTIONS)
        stream.height, stream.width = info.height, info.width
        stream.pix_fmt = pixel_format(info)
        context = stream.codec_context
        context.sample_aspect_ratio = info.pixel_aspect
        # Said in the file, as players guess otherwise, and small videos differently from large ones.
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = number, 1 / info.rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def pixel_format(info: VideoInfo) -> str:
    """FFmpeg's name of how pixels are stored: color at half resolution, where both sides are even."""
    return "yuv444p" if info.height % 2 or info.width % 2 else "yuv420p"


def parts_folder(output: Path) -> Path:
    """Where parts of a video are kept until it is done."""
    return output.with_name(f"{output.name}.parts")


def check_output(path: Path, info: VideoInfo) -> None:
    """Find out before long work whether a video could be written to `path`; leaves nothing behind.

    Raises:
        VideoError: unknown suffix, an existing file, or sound that this kind of file does not hold.
        splice_ff.errors.InputError: its folder takes no file.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if not kind:
        raise VideoError(f"{path}: names no video format; use a name with one of {', '.join(SUFFIXES)}")
    check_place(path)
    check_place(parts_folder(path) / RECORD)
    if path.exists():  # hours of work, perhaps
        raise VideoError(f"{path}: exists; remove it, or choose another name with -o")
    if lost := _not_in(kind, info.audio):
        other = "choose .mkv" if not _not_in("matroska", info.audio) else "take the sound out, or export it as AAC"
        raise VideoError(f"{path}: this format cannot keep the sound ({', '.join(lost)}); {other}")


def _not_in(kind: str, codecs: tuple[str, ...]) -> list[str]:
    """Those of the codecs that a kind of file cannot hold."""
    with av.open(io.BytesIO(), "w", format=kind) as container:
        return [codec for codec in codecs if codec not in container.supported_codecs]


@contextmanager
def open_video(path: Path) -> Iterator[Any]:
    """Open a video file for reading: PyAV's container.

    Raises:
        VideoError: it cannot be opened; or, of any error of FFmpeg while it is open, that it is damaged.
    """
    try:
        if path.is_dir():
            raise VideoError(f"{path}: is a folder; name a video file in it")
        if not path.exists():
            raise VideoError(f"{path}: no such file; check the path")
        if not path.is_file():
            raise VideoError(f"{path}: is a pipe or a device; write the video to a file first")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty; download or export it again")
        options = {"format_whitelist": READERS, "protocol_whitelist": "file"}
        container = av.open(f"file:{path}", options=options)
    except (
        av.error.InvalidDataError,
        av.error.ArgumentError,
    ) as error:  # of no kind, or of one that READERS leaves out
        hint = "paint an image with `splice-ff transfer`" if path.suffix.lower() in IMAGE_SUFFIXES else "use MP4 or MKV"
        raise VideoError(f"{path}: not a video, or too damaged to tell; {hint}") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{path}: cannot be read ({reason(error)}); check the path and its permissions") from error
    with container:
        try:
            yield container
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: damaged ({error.strerror}); download or export it again") from error


@contextmanager
def writing(path: Path, kind: str) -> Iterator[Any]:
    """Open a video file for writing, of a kind that FFmpeg knows: PyAV's container. Its errors are OSErrors."""
    try:
        with av.open(f"file:{path}", "w", format=kind) as container:
            yield container
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def audio_streams(container: Any) -> list[Any]:
    """The audio streams that FFmpeg can tell the codec of; PyAV gives the others none."""
    return [stream for stream in container.streams.audio if stream.codec_context is not None]


def video_stream(path: Path, container: Any) -> Any:
    """The first stream of moving images; VideoError if there is none. The cover of a song is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise VideoError(f"{path}: holds no video stream; choose a file with moving images")
