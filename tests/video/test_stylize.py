"""A video painted with one look: its size, times, sound and orientation stay, and a stopped run goes on."""

from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra video")

import av
from support.one_shot_model import make_model, random_image
from support.video_files import RATE, forget_last_sound, packets, panned, write_video

from splice_ff.errors import VideoError
from splice_ff.video import stylize
from splice_ff.video.files import read_frames, read_info
from splice_ff.video.stylize import stylize_video


@pytest.fixture
def model(tiny_backbone):
    return make_model(tiny_backbone(depth=2))


@pytest.fixture
def look(model):
    return model.embed(random_image(3))


class Copy:
    """A model that paints nothing, so that what files do is seen alone; it counts frames."""

    def __init__(self, model):
        self.device, self.dtype, self.config = model.device, model.dtype, model.config
        self.identity = {"model_sha256": "copy", "unet": "none"}
        self.painted = 0
        self.stop_at = None

    def paint(self, structure, tokens, *, size, strength):
        self.painted += len(structure)
        if self.stop_at and self.painted >= self.stop_at:
            raise KeyboardInterrupt
        return structure


@pytest.fixture
def copy(model):
    return Copy(model)


def pixels(path):
    return [frame.pixels for frame in read_frames(path)]


def test_every_frame_is_what_the_model_paints(tmp_path, model, look):
    write_video(tmp_path / "in.mp4", panned(count=3))
    made = stylize_video(model, tmp_path / "in.mp4", look, tmp_path / "out.mp4", size=64, batch_size=2)
    assert made.frames == 3 and made.path == tmp_path / "out.mp4"
    for before, after in zip(pixels(tmp_path / "in.mp4"), pixels(tmp_path / "out.mp4"), strict=True):
        wanted = model.paint(torch.from_numpy(before).permute(2, 0, 1)[None] / 255, look, size=64)[0]
        difference = np.abs(wanted.permute(1, 2, 0).numpy() * 255 - after).mean()
        assert difference < 12  # color at half resolution, compressed: noise suffers
        assert np.abs(before.astype(int) - after).mean() > 2 * difference


def after_the_sound_begins(path):
    """When each frame is shown, in seconds. Some formats begin at 0 where others have the codec's run-up before it."""
    begin, unit = packets(path, "audio")[0][0], read_info(path).time_base
    return [float(frame.time * unit) - begin for frame in read_frames(path)]


def test_the_rate_stays(tmp_path, copy, look):
    write_video(tmp_path / "in.mp4", panned())
    stylize_video(copy, tmp_path / "in.mp4", look, tmp_path / "out.mp4")
    info = read_info(tmp_path / "out.mp4")
    assert info.rate == RATE and info.frames == 6


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_size_times_and_sound_stay(tmp_path, copy, look, suffix):
    source, output = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    times = [0, 1, 2, 5, 6, 9]  # a telephone's: not evenly spaced
    write_video(source, panned(), times=times, audio="aac")
    stylize_video(copy, source, look, output, facts={"model": "copy"})
    after = read_info(output)
    assert (after.height, after.width, after.audio) == (48, 64, ("aac",))
    assert after_the_sound_begins(output) == pytest.approx(after_the_sound_begins(source), abs=0.001)
    assert [data for _, data in packets(source, "audio")] == [data for _, data in packets(output, "audio")]
    difference = np.abs(np.stack(pixels(source)).astype(int) - np.stack(pixels(output)))
    assert difference.mean() < 6, "other colors"
    with av.open(str(output)) as container:
        comment = {key.lower(): text for key, text in container.metadata.items()}["comment"]
    assert comment == "model: copy"
    assert {path.name for path in tmp_path.iterdir()} == {source.name, output.name}


def test_sound_of_an_unknown_kind_alone_is_refused(tmp_path, copy, look):
    write_video(tmp_path / "in.mp4", panned(), audio="aac")
    forget_last_sound(tmp_path / "in.mp4")
    assert read_info(tmp_path / "in.mp4").audio == ("unknown",)
    with pytest.raises(VideoError, match=r"cannot keep the sound \(unknown\); take the sound out, or export it as AAC"):
        stylize_video(copy, tmp_path / "in.mp4", look, tmp_path / "out.mp4")


def test_sound_of_an_unknown_kind_beside_another_is_left_out(tmp_path, copy, look):
    """A telephone's spatial sound, beside plain sound for others."""
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(source, panned(), audio="aac", tracks=2)
    forget_last_sound(source)
    assert read_info(source).unknown_audio == 1
    stylize_video(copy, source, look, output)
    info = read_info(output)
    assert info.audio == ("aac",) and info.unknown_audio == 0
    assert [data for _, data in packets(source, "audio")] == [data for _, data in packets(output, "audio")]


def test_flat_colors_come_through_unchanged(tmp_path, copy, look):
    colors = [(200, 30, 30), (20, 180, 60), (30, 60, 220), (128, 128, 128)]
    write_video(tmp_path / "in.mkv", [np.full((48, 64, 3), color, np.uint8) for color in colors])
    stylize_video(copy, tmp_path / "in.mkv", look, tmp_path / "out.mp4")
    before, after = (np.stack(pixels(tmp_path / name)).astype(int) for name in ("in.mkv", "out.mp4"))
    assert np.abs(before - after).max() <= 4


def test_an_odd_size_stays(tmp_path, copy, look):
    write_video(tmp_path / "in.mkv", panned(h=49, w=63))
    stylize_video(copy, tmp_path / "in.mkv", look, tmp_path / "out.mp4")
    info = read_info(tmp_path / "out.mp4")
    assert (info.height, info.width) == (49, 63)


def test_a_video_filmed_sideways_stands_up(tmp_path, copy, look):
    frames = panned(count=2)
    write_video(tmp_path / "in.mp4", frames, rotation=90)
    assert (read_info(tmp_path / "in.mp4").height, read_info(tmp_path / "in.mp4").width) == (64, 48)
    stylize_video(copy, tmp_path / "in.mp4", look, tmp_path / "out.mp4")
    for wanted, found in zip(frames, pixels(tmp_path / "out.mp4"), strict=True):
        assert found.shape == (64, 48, 3)
        assert np.abs(np.rot90(wanted).astype(int) - found).mean() < 8


@pytest.mark.parametrize(("rotation", "wanted"), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_pixels_that_are_not_square_stay_so(tmp_path, copy, look, rotation, wanted):
    write_video(tmp_path / "in.mp4", panned(count=2), aspect=Fraction(4, 3), rotation=rotation)
    stylize_video(copy, tmp_path / "in.mp4", look, tmp_path / "out.mp4")
    assert read_info(tmp_path / "out.mp4").pixel_aspect == wanted


def test_a_stopped_run_goes_on(tmp_path, copy, look, monkeypatch):
    monkeypatch.setattr(stylize, "PART", 4)
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(source, panned(count=10))
    copy.stop_at = 6
    with pytest.raises(KeyboardInterrupt):
        stylize_video(copy, source, look, output, batch_size=2)
    assert not output.exists() and (tmp_path / "out.mp4.parts").is_dir()
    with pytest.raises(
        VideoError, match=r"out\.mp4\.parts: holds parts of a video made with other settings \(strength"
    ):
        stylize_video(copy, source, look, output, strength=0.5)
    copy.identity["unet"] = "another"
    with pytest.raises(VideoError, match=r"made with other settings \(unet"):
        stylize_video(copy, source, look, output)
    copy.identity["unet"], copy.stop_at, copy.painted = "none", None, 0
    seen = []
    assert stylize_video(copy, source, look, output, callback=lambda: seen.append(1)).frames == 10
    assert copy.painted == 6 and len(seen) == 10, "the first four were finished"
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}
    whole = tmp_path / "whole.mp4"
    stylize_video(copy, source, look, whole)
    assert [data for _, data in packets(whole, "video")] == [data for _, data in packets(output, "video")]


def test_a_damaged_end_is_an_error_and_leaves_nothing(tmp_path, copy, look, monkeypatch):
    monkeypatch.setattr(stylize, "PART", 2)
    source = tmp_path / "in.mp4"
    write_video(source, panned(count=8))
    whole = source.read_bytes()
    (last, _), *_ = sorted(((data, time) for time, data in packets(source, "video")), key=lambda p: whole.index(p[0]))[
        -2:
    ]
    at = whole.index(last)
    source.write_bytes(whole[:at] + b"\xff" * len(last) + whole[at + len(last) :])
    with pytest.raises(VideoError, match=r"in\.mp4: damaged"):
        stylize_video(copy, source, look, tmp_path / "out.mp4")
    assert copy.painted and {path.name for path in tmp_path.iterdir()} == {"in.mp4"}
