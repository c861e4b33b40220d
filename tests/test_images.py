import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, features

from splice_ff import images
from splice_ff.images import (
    ImageError,
    atomic_write,
    check_writable,
    load_image,
    resize_shorter_side,
    save_image,
)

LOSSLESS = [".png", ".tif", ".tiff", ".bmp"]
LOSSY = [".jpg", ".jpeg", ".webp"] + ([".avif"] if features.check("avif") else [])
needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")


def noise(height=20, width=28, channels=3, seed=0):
    """Random bytes: an image in which no two orientations or crops look the same."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def unit(array):
    """What load_image should make of uint8 `(H, W, C)`: `(1, C, H, W)` in [0, 1]."""
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


def saved(image, path, **options):
    image.save(path, **options)
    return path


def reopened(path):
    """What Pillow alone reads, with the file closed again."""
    with Image.open(path) as image:
        image.load()
    return image


def complaint(function, *arguments, **options):
    """The message of the ImageError that the call must raise; always one line."""
    with pytest.raises(ImageError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def bomb(path, width, height):
    """A grey 8-bit PNG that announces a size and holds no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(png)
    return path


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile():
    """A valid RGB profile whose first channel is green and whose second is red."""
    return srgb_profile().replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


def grey_profile():
    profile = srgb_profile().replace(b"rTRC", b"kTRC")
    return profile[:16] + b"GRAY" + profile[20:]


def white_ink_profile():
    """A CMYK profile by which every mixture of inks prints white: its one table is a lut8 into Lab."""
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i in (0, 4, 8) else 0 for i in range(9)))
    white = bytes([255, 128, 128]) * 2**4
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + white + ramp * 3
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    header = struct.pack(">I4sI4s4s4s", 144 + len(table), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header = (header.ljust(36, b"\0") + b"acsp").ljust(68, b"\0") + d50
    return header.ljust(128, b"\0") + tags + table


# Reading: formats and modes


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
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    grey = np.random.default_rng(0).integers(0, 65536, (20, 28)).astype(np.uint16)
    grey[0, :4] = 0, 1000, 40000, 65535
    loaded = load_image(saved(Image.fromarray(grey), tmp_path / f"a{suffix}"))
    expected = torch.from_numpy(grey.astype(np.float32) / 65535).expand(1, 3, 20, 28)
    torch.testing.assert_close(loaded.rgb, expected, atol=1e-6, rtol=0)


def test_32_bit_grey(tmp_path):
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    whole = (ramp * 65535).astype(np.int32)
    assert torch.equal(load_image(saved(Image.fromarray(ramp), tmp_path / "f.tif")).rgb[0, 1], torch.from_numpy(ramp))
    loaded = load_image(saved(Image.fromarray(whole), tmp_path / "i.tif")).rgb[0, 1]
    torch.testing.assert_close(loaded, torch.from_numpy(whole / 65535).float())


@pytest.mark.parametrize("values", [np.int32([65536]), np.int32([-1]), np.float32([1.5]), np.float32([np.nan])])
def test_32_bit_grey_of_unknown_range_is_refused(tmp_path, values):
    path = saved(Image.fromarray(np.tile(values, (20, 20))), tmp_path / "a.tif")
    assert "a.tif" in complaint(load_image, path)


def test_grey_and_black_and_white(tmp_path):
    grey = noise(channels=1)
    bits = grey > 127
    loaded = load_image(saved(Image.fromarray(grey[..., 0]), tmp_path / "grey.png"))
    assert torch.equal(loaded.rgb, unit(grey).expand(-1, 3, -1, -1))
    loaded = load_image(saved(Image.fromarray(bits[..., 0]), tmp_path / "bits.png"))
    assert torch.equal(loaded.rgb[:, :1], unit(bits * np.uint8(255)))


def test_cmyk(tmp_path):
    path = saved(Image.new("CMYK", (20, 20), (255, 0, 0, 0)), tmp_path / "a.jpg", quality=100)
    rgb = load_image(path).rgb[0, :, 10, 10]
    torch.testing.assert_close(rgb, torch.tensor([0.0, 1.0, 1.0]), atol=0.02, rtol=0)


def test_palette(tmp_path):
    colours = noise() // 128 * 255  # eight colours: a palette holds them exactly
    path = saved(Image.fromarray(colours).quantize(8), tmp_path / "a.png")
    assert reopened(path).mode == "P"
    loaded = load_image(path)
    assert torch.equal(loaded.rgb, unit(colours))
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
    assert loaded.rgb[0, :, 5, 5].tolist() == [0, 1, 0]


def test_colour_declared_transparent(tmp_path):
    image = Image.new("RGB", (20, 20), (10, 20, 30))
    image.paste((200, 0, 0), (0, 0, 10, 20))
    loaded = load_image(saved(image, tmp_path / "a.png", transparency=(200, 0, 0)))
    assert loaded.alpha[..., :10].max() == 0 and loaded.alpha[..., 10:].min() == 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha(tmp_path, suffix):
    rgba = noise(channels=4)
    loaded = load_image(saved(Image.fromarray(rgba), tmp_path / f"a{suffix}"))
    assert torch.equal(torch.cat([loaded.rgb, loaded.alpha], 1), unit(rgba))
    assert loaded.rgb.is_contiguous() and loaded.alpha.is_contiguous()


def test_grey_with_alpha(tmp_path):
    grey_alpha = noise(channels=2)
    loaded = load_image(saved(Image.fromarray(grey_alpha, "LA"), tmp_path / "a.png"))
    assert torch.equal(loaded.rgb[:, 2:], unit(grey_alpha[..., :1]))
    assert torch.equal(loaded.alpha, unit(grey_alpha[..., 1:]))


def test_an_alpha_channel_that_hides_nothing_is_none(tmp_path):
    rgba = noise(channels=4)
    rgba[..., 3] = 255
    assert load_image(saved(Image.fromarray(rgba), tmp_path / "a.png")).alpha is None


# Reading: orientation, colour profiles, frames


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


def test_orientation_of_a_photograph_and_of_16_bit_grey(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert load_image(saved(Image.new("RGB", (28, 20)), tmp_path / "a.jpg", exif=exif)).size == (28, 20)
    grey = np.arange(560, dtype=np.uint16).reshape(20, 28)
    loaded = load_image(saved(Image.fromarray(grey), tmp_path / "a.png", exif=exif))
    assert (loaded.rgb[0, 0] * 65535).round().int().tolist() == np.rot90(grey, -1).tolist()


def test_damaged_exif_is_ignored_with_a_note(tmp_path):
    loaded = load_image(saved(Image.fromarray(noise()), tmp_path / "a.png", exif=b"Exif\0\0garbage"))
    assert torch.equal(loaded.rgb, unit(noise()))
    assert "EXIF" in " ".join(loaded.notes)


def test_a_colour_profile_is_converted_to_srgb(tmp_path):
    red = Image.new("RGB", (20, 20), (255, 0, 0))
    loaded = load_image(saved(red, tmp_path / "a.png", icc_profile=swapped_profile()))
    torch.testing.assert_close(loaded.rgb[0, :, 5, 5], torch.tensor([0.0, 1.0, 0.0]), atol=0.03, rtol=0)
    assert loaded.notes == ()


def test_an_srgb_profile_changes_nothing(tmp_path):
    loaded = load_image(saved(Image.fromarray(noise()), tmp_path / "a.png", icc_profile=srgb_profile()))
    torch.testing.assert_close(loaded.rgb, unit(noise()), atol=1.01 / 255, rtol=0)
    assert loaded.notes == ()


def test_a_colour_profile_leaves_alpha_alone(tmp_path):
    rgba = noise(channels=4)
    rgba[..., :3] = 255, 0, 0
    loaded = load_image(saved(Image.fromarray(rgba), tmp_path / "a.png", icc_profile=swapped_profile()))
    assert torch.equal(loaded.alpha, unit(rgba[..., 3:]))
    assert loaded.rgb[0, 1].min() > 0.97


@pytest.mark.parametrize("profile", [grey_profile(), swapped_profile()], ids=["grey", "rgb"])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_pictures_meet_grey_and_rgb_profiles(tmp_path, mode, profile):
    grey = noise(channels=1)
    path = saved(Image.fromarray(grey[..., 0]).convert(mode), tmp_path / "a.png", icc_profile=profile)
    loaded = load_image(path)
    assert loaded.notes == ()
    torch.testing.assert_close(loaded.rgb, unit(grey).expand(-1, 3, -1, -1), atol=2.01 / 255, rtol=0)


def test_cmyk_meets_its_profile(tmp_path):
    cyan = Image.new("CMYK", (20, 20), (255, 0, 0, 0))
    loaded = load_image(saved(cyan, tmp_path / "a.jpg", icc_profile=white_ink_profile()))
    assert loaded.notes == ()
    assert loaded.rgb.min() > 0.97


@pytest.mark.parametrize("profile", [b"garbage", bytes(200), grey_profile()], ids=["garbage", "zeros", "grey"])
def test_a_bad_colour_profile_is_ignored_with_a_note(tmp_path, profile):
    loaded = load_image(saved(Image.fromarray(noise()), tmp_path / "a.png", icc_profile=profile))
    assert torch.equal(loaded.rgb, unit(noise()))
    assert "profile" in " ".join(loaded.notes)


def test_16_bit_grey_says_that_its_profile_is_ignored(tmp_path):
    grey = Image.fromarray(np.full((20, 20), 500, np.uint16))
    assert "profile" in " ".join(load_image(saved(grey, tmp_path / "a.png", icc_profile=grey_profile())).notes)
    assert load_image(saved(grey, tmp_path / "b.png")).notes == ()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_animated_uses_the_first_frame_and_says_so(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    loaded = load_image(
        saved(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    )
    assert loaded.notes == ("animated: first of 3 frames used",)
    assert loaded.rgb[0, :, 5, 5].tolist() == [1, 0, 0]


def test_pages_of_a_tiff_are_noted_and_a_phones_extra_picture_is_not(tmp_path):
    pages = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime")]
    tiff = load_image(saved(pages[0], tmp_path / "a.tif", save_all=True, append_images=pages[1:]))
    assert tiff.notes == ("several pages: first of 2 pages used",)
    assert tiff.rgb[0, :, 5, 5].tolist() == [1, 0, 0]
    phone = saved(pages[0], tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pages[1:])
    assert reopened(phone).n_frames == 2
    assert load_image(phone).notes == ()


# Reading: files that cannot be used


def test_missing(tmp_path):
    path = tmp_path / "none.png"
    assert complaint(load_image, path).startswith(f"{path}: no such file;")


def test_folder(tmp_path):
    assert complaint(load_image, tmp_path).startswith(f"{tmp_path}: is a folder;")


def test_empty(tmp_path):
    (tmp_path / "a.png").touch()
    path = tmp_path / "a.png"
    assert complaint(load_image, path).startswith(f"{path}: the file is empty;")


def test_text_named_png(tmp_path):
    (tmp_path / "a.png").write_text("This is a shopping list, and a rather long one at that.")
    message = complaint(load_image, tmp_path / "a.png")
    assert "a.png" in message and "not an image" in message


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY, ".gif"])
def test_truncated(tmp_path, suffix):
    path = saved(Image.fromarray(noise(60, 60)), tmp_path / f"a{suffix}")
    load_image(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = complaint(load_image, path)
    assert path.name in message and ("cut short" in message or "damaged" in message)


@needs_permissions
def test_unreadable(tmp_path):
    path = saved(Image.fromarray(noise()), tmp_path / "a.png")
    path.chmod(0)
    message = complaint(load_image, path)
    assert "a.png" in message and "cannot be read (Permission denied)" in message


def test_the_systems_reason_is_passed_on(tmp_path):
    path = saved(Image.fromarray(noise()), tmp_path / "a.png")
    assert "cannot be read (Not a directory)" in complaint(load_image, path / "b.png")


def test_a_line_break_in_the_name_does_not_break_the_message(tmp_path):
    assert "two lines.png" in complaint(load_image, tmp_path / "two\nlines.png")


# 81, 100 and 400 megapixels: below Pillow's own warning, between its warning and its error, above both.
@pytest.mark.parametrize("side", [9_000, 10_000, 20_000])
def test_too_many_pixels_are_refused_from_the_header(tmp_path, side):
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        message = complaint(load_image, bomb(tmp_path / "a.png", side, side))
    assert "a.png" in message and "64 megapixels" in message
    assert leaked == []


def test_exactly_the_most_pixels_are_not_refused_for_their_number(tmp_path):
    assert "damaged" in complaint(load_image, bomb(tmp_path / "a.png", 8_000, 8_000))
    assert "megapixels" in complaint(load_image, bomb(tmp_path / "a.png", 8_000, 8_001))


def test_pillows_own_limit_neither_decides_nor_changes(tmp_path, monkeypatch):
    path = saved(Image.fromarray(noise()), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    load_image(path)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_too_small(tmp_path, size):
    message = complaint(load_image, saved(Image.new("RGB", size), tmp_path / "a.png"))
    assert "a.png" in message and f"{size[0]}x{size[1]} is too small" in message


def test_the_smallest_side_is_accepted():
    assert load_image(Image.new("RGB", (16, 17))).size == (17, 16)


# Reading: pictures in memory


def test_pil_image(tmp_path):
    image = Image.fromarray(noise(channels=4))
    loaded = load_image(image)
    assert torch.equal(torch.cat([loaded.rgb, loaded.alpha], 1), unit(noise(channels=4)))
    assert loaded.source == "PIL image"
    assert image.mode == "RGBA"


def test_pil_image_with_orientation_and_profile(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    red = Image.new("RGB", (28, 20), "red")
    with Image.open(saved(red, tmp_path / "a.png", exif=exif, icc_profile=swapped_profile())) as image:
        loaded = load_image(image)
        assert image.size == (28, 20)  # the caller's own image is left alone
    assert loaded.size == (28, 20)
    assert loaded.rgb[0, 1].min() > 0.97


def test_pil_image_that_turns_out_damaged():
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "JPEG")
    image = Image.open(io.BytesIO(buffer.getvalue()[:-300]))
    assert "PIL image" in complaint(load_image, image)


def test_big_endian_16_bit_grey_in_memory():
    image = Image.new("I;16B", (20, 20), 1000)
    assert load_image(image).rgb.unique().item() == pytest.approx(1000 / 65535)


@pytest.mark.parametrize(
    ("dtype", "white"),
    [(np.uint8, 255), (np.uint16, 65535), (">u2", 65535), (bool, 1), (np.float16, 1), (float, 1)],
)
def test_arrays(dtype, white):
    for shape in [(20, 28), (20, 28, 3), (20, 28, 4)]:
        array = (np.random.default_rng(0).random(shape).round(1) * white).astype(dtype)
        loaded = load_image(array)
        expected = torch.from_numpy(np.atleast_3d(array).astype(np.float64) / white).permute(2, 0, 1)[None].float()
        torch.testing.assert_close(loaded.rgb, expected[:, :3].expand(1, 3, 20, 28))
        assert loaded.rgb.dtype == torch.float32
        assert loaded.source == "array"
        if len(shape) == 3 and shape[2] == 4:
            torch.testing.assert_close(loaded.alpha, expected[:, 3:])
        else:
            assert loaded.alpha is None


def test_an_array_view_and_no_shared_memory():
    array = noise().astype(np.float32) / 255
    loaded = load_image(array[::-1, :, ::-1])
    array[:] = 0
    torch.testing.assert_close(loaded.rgb, unit(noise()[::-1, :, ::-1]))


@pytest.mark.parametrize("shape", [(20,), (20, 20, 2), (20, 20, 1), (3, 20, 20), (1, 20, 20, 3)])
def test_arrays_of_other_shapes(shape):
    assert str(shape) in complaint(load_image, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint32", "complex64", "object"])
def test_arrays_of_other_types(dtype):
    assert dtype in complaint(load_image, np.zeros((20, 20, 3), dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.01, -0.01])
@pytest.mark.parametrize("channel", [0, 3])
def test_floats_outside_the_range(value, channel):
    array = np.full((20, 20, 4), 0.5)
    array[3, 4, channel] = value
    assert "[0, 1]" in complaint(load_image, array)
    assert "[0, 1]" in complaint(load_image, torch.from_numpy(array).permute(2, 0, 1))


@pytest.mark.parametrize(
    "shape", [(3, 20, 28), (1, 3, 20, 28), (4, 20, 28), (1, 4, 20, 28), (1, 20, 28), (1, 1, 20, 28)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_tensors(shape, dtype):
    whole = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    tensor = whole.to(dtype) if dtype == torch.uint8 else (whole / 255).to(dtype)
    planes = (tensor.double() / (255 if dtype == torch.uint8 else 1)).float().reshape(1, -1, 20, 28)
    loaded = load_image(tensor)
    torch.testing.assert_close(loaded.rgb, planes[:, :3].expand(1, 3, 20, 28))
    assert loaded.rgb.dtype == torch.float32
    assert loaded.source == "tensor"
    if planes.shape[1] == 4:
        torch.testing.assert_close(loaded.alpha, planes[:, 3:])
    else:
        assert loaded.alpha is None


def test_a_tensor_is_copied_and_detached():
    tensor = torch.full((3, 20, 20), 0.5, requires_grad=True)
    loaded = load_image(tensor)
    loaded.rgb.zero_()
    assert tensor.detach().unique().tolist() == [0.5]
    assert not loaded.rgb.requires_grad


@pytest.mark.parametrize("shape", [(20, 20), (2, 3, 20, 20), (2, 20, 20), (5, 20, 20), (20, 20, 3), (1, 1, 3, 20, 20)])
def test_tensors_of_other_shapes(shape):
    assert str(shape) in complaint(load_image, torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_of_other_types(dtype):
    message = complaint(load_image, torch.zeros((3, 20, 20), dtype=dtype))
    assert str(dtype) in message and "(3, 20, 20)" in message


def test_size_limits_hold_in_memory_too():
    assert "1x1" in complaint(load_image, np.zeros((1, 1, 3), np.uint8))
    assert "1x1" in complaint(load_image, torch.zeros(3, 1, 1))
    assert "1x1" in complaint(load_image, Image.new("RGB", (1, 1)))
    # Strides of 0: a large shape on a single byte of memory.
    assert "megapixels" in complaint(load_image, np.broadcast_to(np.uint8(0), (8001, 8000)))
    assert "megapixels" in complaint(load_image, torch.zeros(1, dtype=torch.uint8).expand(3, 8001, 8000))


def test_other_things_are_no_images():
    assert "list" in complaint(load_image, [[0.5]])


# Resizing


@pytest.mark.parametrize(("shape", "size", "expected"), [
    ((2, 3, 40, 60), 20, (2, 3, 20, 30)),
    ((1, 3, 60, 40), 20, (1, 3, 30, 20)),
    ((1, 1, 40, 60), 80, (1, 1, 80, 120)),
    ((1, 3, 33, 50), 22, (1, 3, 22, 33)),
])  # fmt: skip
def test_resize_shorter_side(shape, size, expected):
    assert resize_shorter_side(torch.rand(shape), size).shape == expected


def test_resize_leaves_what_fits():
    image = torch.rand(1, 3, 20, 30)
    assert resize_shorter_side(image, 20) is image


def test_resize_stays_in_range_at_hard_edges():
    edge = torch.zeros(1, 3, 20, 20)
    edge[..., 10:] = 1
    resized = resize_shorter_side(edge, 64)
    assert resized.min() == 0 and resized.max() == 1


def test_resize_is_antialiased():
    checkerboard = ((torch.arange(48)[:, None] + torch.arange(48)) % 2).float().expand(1, 3, 48, 48)
    inner = resize_shorter_side(checkerboard, 16)[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.1, rtol=0)


# Writing


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".PNG"])
def test_save_and_load(tmp_path, suffix):
    rgb = unit(noise())
    for picture in (rgb, rgb[0]):
        path = save_image(str(tmp_path / f"a{suffix}"), picture)
        assert path == tmp_path / f"a{suffix}"
        assert torch.equal(load_image(path).rgb, rgb)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", LOSSY)
def test_save_and_load_lossy(tmp_path, suffix):
    rgb = torch.linspace(0, 1, 64).expand(1, 3, 48, 64) * torch.tensor([1, 0.5, 0.2]).view(1, 3, 1, 1)
    loaded = load_image(save_image(tmp_path / f"a{suffix}", rgb))
    torch.testing.assert_close(loaded.rgb, rgb, atol=0.05, rtol=0)
    expected = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF"}[suffix[1:]]
    assert reopened(tmp_path / f"a{suffix}").format == expected


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_comes_back(tmp_path, suffix):
    alpha = unit(noise(channels=1, seed=1))
    for given in (alpha, alpha[0]):
        loaded = load_image(save_image(tmp_path / f"a{suffix}", unit(noise()), alpha=given))
        assert torch.equal(loaded.alpha, alpha)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")
def test_alpha_comes_back_from_avif(tmp_path):
    alpha = torch.linspace(0, 1, 64).expand(1, 1, 48, 64)
    loaded = load_image(save_image(tmp_path / "a.avif", torch.full((3, 48, 64), 0.5), alpha=alpha))
    torch.testing.assert_close(loaded.alpha, alpha, atol=0.05, rtol=0)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_left_out_where_it_cannot_be_kept(tmp_path, suffix):
    path = save_image(tmp_path / f"a{suffix}", torch.ones(3, 20, 20), alpha=torch.zeros(1, 20, 20))
    assert reopened(path).mode == "RGB"
    assert load_image(path).rgb.min() > 0.98


def test_values_are_rounded_and_clamped(tmp_path):
    rgb = torch.full((3, 20, 20), 100.6 / 255)
    rgb[0, 0, :3] = torch.tensor([100.4 / 255, -0.2, 1.2])
    path = save_image(tmp_path / "a.png", rgb)
    assert np.asarray(reopened(path))[0, :4, 0].tolist() == [100, 0, 255, 101]


def test_a_picture_fresh_from_a_model(tmp_path):
    rgb = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    alpha = torch.full((1, 20, 20), 77 / 255, requires_grad=True)
    loaded = load_image(save_image(tmp_path / "a.png", rgb, alpha=alpha))
    expected = (rgb.detach().float() * 255).round() / 255
    torch.testing.assert_close(loaded.rgb, expected)
    assert loaded.alpha.unique().tolist() == [pytest.approx(77 / 255)]


def test_fine_colours_survive_jpeg(tmp_path):
    stripes = torch.zeros(3, 32, 32)
    stripes[0, :, ::2] = stripes[2, :, 1::2] = 1
    loaded = load_image(save_image(tmp_path / "a.jpg", stripes))
    torch.testing.assert_close(loaded.rgb[0], stripes, atol=0.1, rtol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_picture_is_never_written(tmp_path, value):
    good, bad = torch.rand(3, 20, 20), torch.rand(3, 20, 20)
    bad[1, 2, 3] = value
    assert "NaN" in complaint(save_image, tmp_path / "a.png", bad)
    assert "NaN" in complaint(save_image, tmp_path / "a.png", good, alpha=bad[1:2])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shape", [(20, 20), (1, 20, 20), (4, 20, 20), (2, 3, 20, 20), (3, 0, 20)])
def test_other_shapes_are_not_written(tmp_path, shape):
    message = complaint(save_image, tmp_path / "a.png", torch.zeros(shape))
    assert "a.png" in message and str(shape) in message


def test_alpha_must_fit(tmp_path):
    message = complaint(save_image, tmp_path / "a.png", torch.zeros(3, 20, 20), alpha=torch.zeros(1, 10, 40))
    assert "a.png" in message and "(1, 10, 40)" in message


SETTINGS = {"seed": "7", "structure": "Zoë 猫.png"}


def test_settings_are_png_text(tmp_path):
    path = save_image(tmp_path / "a.png", torch.rand(3, 20, 20), settings=SETTINGS)
    assert reopened(path).text == SETTINGS


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", *[s for s in LOSSY if s == ".avif"]])
def test_settings_are_the_exif_description_elsewhere(tmp_path, suffix):
    path = save_image(tmp_path / f"a{suffix}", torch.rand(3, 20, 20), settings=SETTINGS)
    description = reopened(path).getexif()[ExifTags.Base.ImageDescription]
    assert description.encode("latin-1").decode() == "seed=7; structure=Zoë 猫.png"


def test_settings_too_long_for_jpeg_do_not_lose_the_picture(tmp_path):
    path = save_image(tmp_path / "a.jpg", torch.rand(3, 20, 20), settings={"prompt": "x" * 100_000})
    assert reopened(path).getexif()[ExifTags.Base.ImageDescription].startswith("prompt=xxx")


def test_settings_are_left_out_of_bmp(tmp_path):
    load_image(save_image(tmp_path / "a.bmp", torch.rand(3, 20, 20), settings=SETTINGS))
    assert b"seed" not in (tmp_path / "a.bmp").read_bytes()


def test_a_missing_folder_is_created(tmp_path):
    assert save_image(tmp_path / "new" / "newer" / "a.png", torch.rand(3, 20, 20)).is_file()


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_image(tmp_path / "a.png", torch.rand(3, 20, 20))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_keeps_the_old_picture(tmp_path, monkeypatch):
    path = save_image(tmp_path / "a.png", torch.rand(3, 20, 20))
    old = path.read_bytes()

    def half(self, fp, format=None, **options):
        Path(fp).write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    message = complaint(save_image, path, torch.rand(3, 20, 20))
    assert "a.png" in message and "(No space left on device)" in message
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.png"]


# Places that take no file: both functions must say so, one before the work and one after it


def write_anything(path):
    save_image(path, torch.zeros(3, 20, 20))


@pytest.mark.parametrize("function", [check_writable, write_anything])
class TestUnwritable:
    @pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif", ".png"])
    def test_unknown_suffix(self, tmp_path, function, name):
        message = complaint(function, tmp_path / name)
        assert name in message and ".png" in message and ".webp" in message and ".tiff" in message

    def test_folder_in_its_place(self, tmp_path, function):
        (tmp_path / "a.png").mkdir()
        assert "a.png" in complaint(function, tmp_path / "a.png")
        assert os.listdir(tmp_path) == ["a.png"]

    def test_pipe_in_its_place(self, tmp_path, function):
        os.mkfifo(tmp_path / "a.png")
        assert "a.png" in complaint(function, tmp_path / "a.png")
        assert (tmp_path / "a.png").is_fifo()

    @pytest.mark.parametrize("below", ["out.png", "deeper/out.png"])
    def test_file_where_a_folder_should_be(self, tmp_path, function, below):
        (tmp_path / "file").touch()
        assert "out.png" in complaint(function, tmp_path / "file" / below)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
    @pytest.mark.parametrize("path", ["/proc/out.png", "/proc/new/out.png"])
    def test_place_that_refuses_even_root(self, function, path):
        assert path in complaint(function, path)

    @needs_permissions
    @pytest.mark.parametrize("below", ["out.png", "deeper/out.png"])
    def test_read_only_folder(self, tmp_path, function, below):
        tmp_path.chmod(0o555)
        try:
            assert "Permission denied" in complaint(function, tmp_path / below)
        finally:
            tmp_path.chmod(0o755)


def test_check_writable_leaves_nothing_behind(tmp_path):
    (tmp_path / "old.png").write_bytes(b"old")
    for path in (tmp_path / "a.png", tmp_path / "new" / "newer" / "a.png", tmp_path / "old.png"):
        check_writable(path)
    assert os.listdir(tmp_path) == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_check_writable_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("a.png")
    write_anything("a.png")
    assert os.listdir() == ["a.png"]


# atomic_write


def test_atomic_write(tmp_path):
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.write_text("new")

    (tmp_path / "a.json").write_text("old")
    atomic_write(str(tmp_path / "a.json"), write)
    assert (tmp_path / "a.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]
    assert seen[0].parent == tmp_path and seen[0].suffix == ".json" and seen[0].name != "a.json"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_a_writer_that_raises_changes_nothing(tmp_path, error, existing):
    path = tmp_path / "a.json"
    if existing:
        path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        atomic_write(path, write)
    assert os.listdir(tmp_path) == (["a.json"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_a_writer_that_writes_nothing_changes_nothing(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OSError):
        atomic_write(tmp_path / "a.json", lambda temporary: None)
    assert (tmp_path / "a.json").read_text() == "old"


def test_the_file_reaches_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(images.os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(images.os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    atomic_write(tmp_path / "a.json", lambda temporary: temporary.write_text("new"))
    assert order == ["fsync", "replace"]


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.json").symlink_to(tmp_path / "elsewhere" / "b.json")
    atomic_write(tmp_path / "a.json", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "elsewhere" / "b.json").read_text() == "new"
