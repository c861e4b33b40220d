"""Tiny videos for tests, written by PyAV."""

from fractions import Fraction

import av
import numpy as np

RATE = Fraction(30_000, 1001)


def panned(count=6, h=48, w=64, step=2, seed=0):
    """Frames (H, W, 3) that pan over one image of smooth colors."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (h // 8 + 2, (w + step * count) // 8 + 2, 3))
    image = np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)
    return [np.ascontiguousarray(image[:h, i * step : i * step + w]) for i in range(count)]


def write_video(path, frames, *, rate=RATE, times=None, rotation=0, aspect=Fraction(1), audio=None, tracks=1):
    """A video of frames, which may be none: `times` in units of 1/`rate`, `rotation` counterclockwise, in degrees,
    `aspect` the width of a pixel by its height, and `audio` the codec of a second of silence, in `tracks`."""
    with av.open(str(path), "w") as container:
        if frames:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv444p"
            stream.codec_context.sample_aspect_ratio = aspect
            if rotation:
                stream.set_display_rotation(rotation)
        sounds = [container.add_stream(audio, rate=16_000) for _ in range(tracks if audio else 0)]
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = times[i] if times else i, 1 / rate
            container.mux(stream.encode(frame))
        if frames:
            container.mux(stream.encode())
        for sound in sounds:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
            silence.sample_rate, silence.pts = 16_000, 0
            container.mux(sound.encode(silence))
            container.mux(sound.encode())


def forget_last_sound(path):
    """Give the last audio track of an MP4 a codec that FFmpeg does not know."""
    data = path.read_bytes()
    for name, other in ((b"mp4a", b"apac"), (b"esds", b"dapa")):
        at = data.rindex(name)
        data = data[:at] + other + data[at + 4 :]
    path.write_bytes(data)


def packets(path, kind):
    """Bytes and times in seconds of a stream's packets, by their times."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        found = [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.dts is not None]
    return sorted(found)
