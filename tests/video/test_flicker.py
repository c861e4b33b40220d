"""The measure of flicker: known values on frames that are known."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra video")

from support.video_files import panned, write_video

from splice_ff import SpliceFF, load_image
from splice_ff.commands._one_shot import DEFAULT_MODEL
from splice_ff.errors import VideoError
from splice_ff.video import flicker
from splice_ff.video.flicker import flicker_of, measure_flicker

STILL = np.full((4, 16, 16, 3), 100, np.uint8)


def test_its_docstring():
    assert doctest.testmod(flicker).attempted == 3 and not doctest.testmod(flicker).failed


def test_a_copy_adds_nothing():
    frames = panned()
    found = flicker_of(frames, frames)
    assert found.structure == found.output > 1 and found.excess == 0 and found.ratio == 1
    assert flicker_of(STILL, STILL).ratio == 1


def test_what_blinks_is_counted_in_levels():
    blinking = STILL.copy()
    blinking[::2] += 6  # every frame differs from the one before by 6
    assert flicker_of(STILL, blinking).excess == 6 and flicker_of(STILL, blinking).ratio == float("inf")
    moving = np.stack(panned(count=4, h=16, w=16))
    added = np.clip(moving.astype(int), 0, 249).astype(np.uint8)
    plain = flicker_of(added, added)
    added_blink = added.copy()
    added_blink[1] += 6
    assert flicker_of(added, added_blink).output > plain.output


def test_one_frame_does_not_flicker():
    assert flicker_of(STILL[:1], STILL[:1] + 5).excess == 0


def test_files_are_compared_frame_by_frame(tmp_path):
    frames = panned()
    write_video(tmp_path / "a.mkv", frames)
    write_video(tmp_path / "b.mkv", [frame // 2 for frame in frames])
    assert measure_flicker(tmp_path / "a.mkv", tmp_path / "b.mkv").ratio == pytest.approx(0.5, abs=0.1)
    write_video(tmp_path / "short.mkv", frames[:-1])
    write_video(tmp_path / "small.mkv", panned(h=32))
    for name in ("short.mkv", "small.mkv"):
        with pytest.raises(VideoError, match=rf"{name}: cannot be compared with .*a\.mkv"):
            measure_flicker(tmp_path / "a.mkv", tmp_path / name)


def test_the_default_model_adds_little_to_a_pan_over_one_image():
    examples = Path(__file__).parents[2] / "examples"
    raccoon, cat = (load_image(examples / f"{name}.jpg").rgb for name in ("raccoon", "cat"))
    wide = torch.nn.functional.interpolate(raccoon, (96, 128), mode="area")
    clip = torch.cat([wide[..., i : i + 112] for i in range(0, 12, 2)])
    model = SpliceFF.from_pretrained(DEFAULT_MODEL)
    painted = model.paint(clip, model.embed(cat))
    found = flicker_of(*(frames.mul(255).round().byte().permute(0, 2, 3, 1).numpy() for frames in (clip, painted)))
    assert found.structure > 1 and found.ratio <= 1.2
