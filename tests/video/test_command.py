"""`splice-ff video` from the first check to the flicker that it reports."""

import re

import pytest

pytest.importorskip("av", reason="needs the extra video")

import av
from av.video.reformatter import ColorTrc
from PIL import Image
from support.checkpoint_files import CONFIG, checkpoint_folder
from support.one_shot_model import make_model, random_image
from support.tiny_vit import make_vit
from support.video_files import panned, write_video
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.errors import VideoError
from splice_ff.images import save_image
from splice_ff.video import stylize
from splice_ff.video.files import read_info
from splice_ff.vit.weights import load_backbone


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    checkpoint_folder(folder / "vit", CONFIG, make_vit(depth=2).state_dict())
    make_model(load_backbone(str(folder / "vit"))).save_pretrained(folder / "model")
    write_video(folder / "clip.mp4", panned(count=4, h=33))
    save_image(folder / "look.png", random_image(5)[0])
    return folder


def run(files, *arguments):
    model = ["--model", files / "model", "--backbone", files / "vit", "--device", "cpu", "--size", "32"]
    return CliRunner().invoke(app, [str(argument) for argument in ("video", *arguments, *model)])


def test_image_and_saved_look_paint_the_same_video(files, tmp_path):
    look = tmp_path / "look.safetensors"
    model = ["--model", files / "model", "--backbone", files / "vit", "--device", "cpu"]
    embedded = CliRunner().invoke(app, [str(a) for a in ("embed", files / "look.png", "-o", look, *model)])
    assert embedded.exit_code == 0, embedded.output
    said = []
    for source in (files / "look.png", look):
        output = tmp_path / f"{source.stem}{source.suffix}.mp4"
        result = run(files, files / "clip.mp4", source, "-o", output)
        assert result.exit_code == 0, result.output
        assert read_info(output).frames == 4
        said.append(re.search(r"differ by ([\d.]+) of 255 levels, those of clip.mp4 by ([\d.]+) ", result.stderr))
        assert "64x33 has an odd side" in result.stderr
    assert said[0] and said[0].groups() == said[1].groups()
    again = run(files, files / "clip.mp4", look, "-o", output)
    assert again.exit_code == 2 and f"{output}: exists" in again.stderr


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "curve", "note"),
    [
        ("pq.mkv", "libx264", "yuv420p10le", ColorTrc.SMPTE2084, "HDR"),
        ("hlg.mkv", "libx264", "yuv420p10le", ColorTrc.ARIB_STD_B67, "HDR"),
        ("sdr.mkv", "libx264", "yuv420p10le", ColorTrc.BT709, None),
        ("vp9.webm", "libvpx-vp9", "yuva420p", ColorTrc.BT709, "transparency"),
        ("quicktime.mov", "qtrle", "argb", ColorTrc.UNSPECIFIED, "transparency"),
    ],
)
def test_what_is_lost_is_told(files, tmp_path, name, codec, pixels, curve, note):
    clip = tmp_path / name
    with av.open(clip, "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        stream.codec_context.color_trc = curve
        frame = av.VideoFrame(64, 64, pixels)
        frame.color_trc = curve
        container.mux([*stream.encode(frame), *stream.encode()])
    result = run(files, clip, files / "look.png", "-o", tmp_path / "out.mp4")
    assert result.exit_code == 0, result.output
    assert [word for word in ("HDR", "transparency") if word in result.stderr] == [note] * (note is not None)


def test_interrupted_it_says_how_to_go_on(files, tmp_path, monkeypatch):
    monkeypatch.setattr(stylize, "PART", 2)
    write, written = stylize.write_frames, []

    def interrupted(path, frames, info):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, frames, info)

    monkeypatch.setattr(stylize, "write_frames", interrupted)
    arguments = (files / "clip.mp4", files / "look.png", "-o", tmp_path / "out.mp4")
    stopped = run(files, *arguments)
    assert stopped.exit_code == 130 and "out.mp4.parts, and the same command goes on" in stopped.stderr
    monkeypatch.setattr(stylize, "write_frames", lambda path, frames, info: write(path, frames, info))
    assert run(files, *arguments, "--quiet").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
def test_an_image_is_no_video(suffix, tmp_path):
    image = tmp_path / f"image.{suffix}"
    Image.new("RGB", (64, 48)).save(image)
    with pytest.raises(VideoError, match=r"not a video.*splice-ff transfer"):
        read_info(image)
