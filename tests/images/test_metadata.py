import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from support.image_files import (
    gray_profile,
    noise,
    reopened,
    saved,
    srgb_profile,
    swapped_profile,
    unit,
    white_ink_profile,
)

from splice_ff.images import load_image


def turned(array, orientation):
    return {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: np.rot90(array, 2).swapaxes(0, 1),
        8: np.rot90(array),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    loaded = load_image(saved(Image.fromarray(noise()), tmp_path / "a.png", exif=exif))
    assert torch.equal(loaded.rgb, unit(turned(noise(), orientation)))
    rgba = noise(channels=4)
    loaded = load_image(saved(Image.fromarray(rgba), tmp_path / "b.png", exif=exif))
    assert torch.equal(loaded.alpha, unit(turned(rgba, orientation)[..., 3:]))


def test_orientation_of_a_photograph_and_of_16_bit_gray(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert load_image(saved(Image.new("RGB", (28, 20)), tmp_path / "a.jpg", exif=exif)).size == (28, 20)
    gray = np.arange(560, dtype=np.uint16).reshape(20, 28)
    loaded = load_image(saved(Image.fromarray(gray), tmp_path / "a.png", exif=exif))
    assert (loaded.rgb[0, 0] * 65535).round().int().tolist() == np.rot90(gray, -1).tolist()


def test_damaged_exif_is_ignored_with_a_note(tmp_path):
    loaded = load_image(saved(Image.fromarray(noise()), tmp_path / "a.png", exif=b"Exif\0\0garbage"))
    assert torch.equal(loaded.rgb, unit(noise()))
    assert "EXIF" in " ".join(loaded.notes)


def test_a_color_profile_is_converted_to_srgb(tmp_path):
    red = Image.new("RGB", (20, 20), (255, 0, 0))
    loaded = load_image(saved(red, tmp_path / "a.png", icc_profile=swapped_profile()))
    torch.testing.assert_close(loaded.rgb[0, :, 5, 5], torch.tensor([0.0, 1.0, 0.0]), atol=0.03, rtol=0)
    assert loaded.notes == ()


def test_an_srgb_profile_changes_nothing(tmp_path):
    loaded = load_image(saved(Image.fromarray(noise()), tmp_path / "a.png", icc_profile=srgb_profile()))
    torch.testing.assert_close(loaded.rgb, unit(noise()), atol=1.01 / 255, rtol=0)
    assert loaded.notes == ()


def test_a_color_profile_leaves_alpha_alone(tmp_path):
    rgba = noise(channels=4)
    rgba[..., :3] = 255, 0, 0
    loaded = load_image(saved(Image.fromarray(rgba), tmp_path / "a.png", icc_profile=swapped_profile()))
    assert torch.equal(loaded.alpha, unit(rgba[..., 3:]))
    assert loaded.rgb[0, 1].min() > 0.97


@pytest.mark.parametrize("profile", [gray_profile(), swapped_profile()], ids=["gray", "rgb"])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_gray_images_meet_gray_and_rgb_profiles(tmp_path, mode, profile):
    gray = noise(channels=1)
    path = saved(Image.fromarray(gray[..., 0]).convert(mode), tmp_path / "a.png", icc_profile=profile)
    loaded = load_image(path)
    assert loaded.notes == ()
    torch.testing.assert_close(loaded.rgb, unit(gray).expand(-1, 3, -1, -1), atol=2.01 / 255, rtol=0)


def test_cmyk_meets_its_profile(tmp_path):
    cyan = Image.new("CMYK", (20, 20), (255, 0, 0, 0))
    loaded = load_image(saved(cyan, tmp_path / "a.jpg", icc_profile=white_ink_profile()))
    assert loaded.notes == ()
    assert loaded.rgb.min() > 0.97


@pytest.mark.parametrize("profile", [b"garbage", bytes(200), gray_profile()], ids=["garbage", "zeros", "gray"])
def test_a_bad_color_profile_is_ignored_with_a_note(tmp_path, profile):
    loaded = load_image(saved(Image.fromarray(noise()), tmp_path / "a.png", icc_profile=profile))
    assert torch.equal(loaded.rgb, unit(noise()))
    assert "profile" in " ".join(loaded.notes)


def test_16_bit_gray_says_that_its_profile_is_ignored(tmp_path):
    gray = Image.fromarray(np.full((20, 20), 500, np.uint16))
    assert "profile" in " ".join(load_image(saved(gray, tmp_path / "a.png", icc_profile=gray_profile())).notes)
    assert load_image(saved(gray, tmp_path / "b.png")).notes == ()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_animated_uses_the_first_frame_and_says_so(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "lime", "blue")]
    loaded = load_image(
        saved(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    )
    assert loaded.notes == ("animated: first of 3 frames used",)
    assert loaded.rgb[0, :, 5, 5].tolist() == [1, 0, 0]


def test_pages_of_a_tiff_are_noted_and_a_phones_extra_image_is_not(tmp_path):
    pages = [Image.new("RGB", (20, 20), color) for color in ("red", "lime")]
    tiff = load_image(saved(pages[0], tmp_path / "a.tif", save_all=True, append_images=pages[1:]))
    assert tiff.notes == ("several pages: first of 2 pages used",)
    assert tiff.rgb[0, :, 5, 5].tolist() == [1, 0, 0]
    phone = saved(pages[0], tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pages[1:])
    assert reopened(phone).n_frames == 2
    assert load_image(phone).notes == ()
