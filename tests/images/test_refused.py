import os
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image
from support.image_files import LOSSLESS, LOSSY, complaint, needs_permissions, noise, saved

from splice_ff.images import check_readable, load_image


def bomb(path, width, height):
    """A gray 8-bit PNG that announces a size and holds no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(png)
    return path


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


# Files of every kind end in bounded time and memory


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("function", [load_image, check_readable])
def test_a_named_pipe_does_not_hang(tmp_path, function):
    os.mkfifo(tmp_path / "a.png")
    assert "is a pipe or a device" in complaint(function, tmp_path / "a.png")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs POSIX")
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_no_image(name):
    assert "is a pipe or a device" in complaint(load_image, name)


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "a.webp", "wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        file.truncate(2**40)  # sparse
    assert "larger than 1 GiB" in complaint(load_image, tmp_path / "a.webp")


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 400 + ".png", "\ud800.png"])
@pytest.mark.parametrize("function", [load_image, check_readable])
def test_names_that_no_file_can_have(function, name):
    complaint(function, name)


OTHER_FILES = {
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "photo.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC"),
    "photo.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(50), "HEIC"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "declared.png": (b"<?xml version='1.0'?>\n<!-- a comment -->\n<SVG/>", "SVG"),
    "page.jpg": (b"\n<!DOCTYPE html><html><body>404", "web page"),
    "paper.png": (b"%PDF-1.7\n", "PDF"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("function", [load_image, check_readable])
def test_files_that_people_take_for_images_are_called_by_their_name(tmp_path, function, name):
    content, word = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    message = complaint(function, tmp_path / name)
    assert name in message and word in message


def test_both_checks_of_a_file_agree(tmp_path):
    image = Image.fromarray(noise(30, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert check_readable(tmp_path / "a.jpg") == load_image(tmp_path / "a.jpg").size == (40, 30)
    for size in ((15, 400), (8001, 8000)):
        path = bomb(tmp_path / "a.png", *size)
        assert complaint(check_readable, path) == complaint(load_image, path)


@pytest.mark.parametrize("strict", [False, True])
def test_pillows_warnings_are_neither_shown_nor_taken_for_damage(tmp_path, strict):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 10, 20))
    image.save(tmp_path / "a.png", transparency=bytes([255, 100]))
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("error" if strict else "always")
        load_image(tmp_path / "a.png")
    assert not leaked


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(Image.fromarray(noise()), tmp_path / "a.png")
    assert load_image("~/a.png").size == (20, 28)
