import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import LOSSLESS, LOSSY, complaint, noise, reopened, saved, translucent, unit

from splice_ff.images import load_image


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_give_exact_pixels(tmp_path, suffix):
    path = saved(Image.fromarray(noise()), tmp_path / f"a{suffix}")
    loaded = load_image(path)
    assert torch.equal(loaded.rgb, unit(noise()))
    assert loaded.rgb.dtype == torch.float32
    assert loaded.alpha is None
    assert loaded.notes == ()
    assert loaded.source == str(path)
    assert loaded.size == (20, 28)


@pytest.mark.parametrize("suffix", [*LOSSY, ".gif"])
def test_lossy_formats_are_close(tmp_path, suffix):
    flat = Image.new("RGB", (28, 20), (200, 100, 50))
    loaded = load_image(str(saved(flat, tmp_path / f"a{suffix}")))
    assert loaded.rgb.shape == (1, 3, 20, 28)
    torch.testing.assert_close(loaded.rgb, unit(np.asarray(flat)), atol=0.03, rtol=0)


def test_paths_of_every_kind(tmp_path):
    path = saved(Image.fromarray(noise()), tmp_path / "a.png")
    with os.scandir(tmp_path) as entries:
        (entry,) = entries
    for given in (path, str(path), entry):
        loaded = load_image(given)
        assert torch.equal(loaded.rgb, unit(noise()))
        assert loaded.source == str(path)


def test_the_format_is_read_from_the_content_not_the_name(tmp_path):
    path = saved(Image.fromarray(noise()), tmp_path / "a.jpg", format="PNG")
    assert torch.equal(load_image(path).rgb, unit(noise()))


def test_formats_not_listed_are_refused(tmp_path):
    message = complaint(load_image, saved(Image.fromarray(noise()), tmp_path / "a.ppm"))
    assert "a.ppm" in message and "PNG" in message


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_keeps_its_range(tmp_path, suffix):
    gray = np.random.default_rng(0).integers(0, 65536, (20, 28)).astype(np.uint16)
    gray[0, :4] = 0, 1000, 40000, 65535
    loaded = load_image(saved(Image.fromarray(gray), tmp_path / f"a{suffix}"))
    expected = torch.from_numpy(gray.astype(np.float32) / 65535).expand(1, 3, 20, 28)
    torch.testing.assert_close(loaded.rgb, expected, atol=1e-6, rtol=0)


def test_32_bit_gray(tmp_path):
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    whole = (ramp * 65535).astype(np.int32)
    assert torch.equal(load_image(saved(Image.fromarray(ramp), tmp_path / "f.tif")).rgb[0, 1], torch.from_numpy(ramp))
    loaded = load_image(saved(Image.fromarray(whole), tmp_path / "i.tif")).rgb[0, 1]
    torch.testing.assert_close(loaded, torch.from_numpy(whole / 65535).float())


@pytest.mark.parametrize("values", [np.int32([65536]), np.int32([-1]), np.float32([1.5]), np.float32([np.nan])])
def test_32_bit_gray_of_unknown_range_is_refused(tmp_path, values):
    path = saved(Image.fromarray(np.tile(values, (20, 20))), tmp_path / "a.tif")
    assert "a.tif" in complaint(load_image, path)


def test_gray_and_black_and_white(tmp_path):
    gray = noise(channels=1)
    bits = gray > 127
    loaded = load_image(saved(Image.fromarray(gray[..., 0]), tmp_path / "gray.png"))
    assert torch.equal(loaded.rgb, unit(gray).expand(-1, 3, -1, -1))
    loaded = load_image(saved(Image.fromarray(bits[..., 0]), tmp_path / "bits.png"))
    assert torch.equal(loaded.rgb[:, :1], unit(bits * np.uint8(255)))


def test_cmyk(tmp_path):
    path = saved(Image.new("CMYK", (20, 20), (255, 0, 0, 0)), tmp_path / "a.jpg", quality=100)
    rgb = load_image(path).rgb[0, :, 10, 10]
    torch.testing.assert_close(rgb, torch.tensor([0.0, 1.0, 1.0]), atol=0.02, rtol=0)


def test_palette(tmp_path):
    colors = noise() // 128 * 255  # eight colors: a palette holds them exactly
    path = saved(Image.fromarray(colors).quantize(8), tmp_path / "a.png")
    assert reopened(path).mode == "P"
    loaded = load_image(path)
    assert torch.equal(loaded.rgb, unit(colors))
    assert loaded.alpha is None


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_palette_with_transparency(tmp_path, transparency):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 10, 20))
    loaded = load_image(saved(image, tmp_path / "a.png", transparency=transparency))
    assert loaded.alpha is not None and loaded.alpha.shape == (1, 1, 20, 20)
    assert loaded.alpha[..., :10].max() == 0 and loaded.alpha[..., 10:].min() == 1
    assert loaded.rgb[0, :, 5, 15].tolist() == [1, 0, 0]
    assert loaded.rgb[0, :, 5, 5].tolist() == [1, 0, 0]  # not the green that the file hides there


def test_color_declared_transparent(tmp_path):
    image = Image.new("RGB", (20, 20), (10, 20, 30))
    image.paste((200, 0, 0), (0, 0, 10, 20))
    loaded = load_image(saved(image, tmp_path / "a.png", transparency=(200, 0, 0)))
    assert loaded.alpha[..., :10].max() == 0 and loaded.alpha[..., 10:].min() == 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha(tmp_path, suffix):
    rgba = translucent()
    loaded = load_image(saved(Image.fromarray(rgba), tmp_path / f"a{suffix}"))
    assert torch.equal(torch.cat([loaded.rgb, loaded.alpha], 1), unit(rgba))
    assert loaded.rgb.is_contiguous() and loaded.alpha.is_contiguous()


def test_gray_with_alpha(tmp_path):
    gray_alpha = translucent(channels=2)
    loaded = load_image(saved(Image.fromarray(gray_alpha, "LA"), tmp_path / "a.png"))
    assert torch.equal(loaded.rgb[:, 2:], unit(gray_alpha[..., :1]))
    assert torch.equal(loaded.alpha, unit(gray_alpha[..., 1:]))


def test_an_alpha_channel_that_hides_nothing_is_none(tmp_path):
    rgba = noise(channels=4)
    rgba[..., 3] = 255
    assert load_image(saved(Image.fromarray(rgba), tmp_path / "a.png")).alpha is None
