"""Which image files can be read and written, and what is wrong with one, without torch and without decoding it."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from splice_ff.errors import ImageError
from splice_ff.utils.files import check_place

MAX_PIXELS = 64_000_000
MAX_BYTES = 2**30
"""Of a file: twice what the most pixels take with 16 bits and alpha, uncompressed. Some readers read files whole."""
MIN_SIDE = 16
"""Pixels: a ViT patch, and the one-shot generator's halvings, need this much."""

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
            ".bmp": "BMP", ".avif": "AVIF"}  # fmt: skip
READABLE = (*dict.fromkeys(SUFFIXES.values()), "GIF")
LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500, "AVIF": 32_768}
"""Pixels in one direction that a format can hold, or that its usual library writes and reads again."""

_pillow_globals = threading.RLock()
if hasattr(os, "register_at_fork"):  # a process forked while another thread reads must not inherit a lock it waits for
    os.register_at_fork(
        before=_pillow_globals.acquire, after_in_parent=_pillow_globals.release, after_in_child=_pillow_globals.release
    )


def check_readable(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Find out from its header whether `load_image` could read a file.

    Returns:
        Its height and width in pixels, as it is shown.

    Raises:
        ImageError: it is missing, a folder, no regular file, empty, unreadable or not an image, or it has more than
            `MAX_PIXELS` pixels, more than `MAX_BYTES` bytes, or a side under `MIN_SIDE`.
    """
    name = os.fspath(path)
    with explained(name), quiet_pillow(), open_image(Path(name)) as image:
        check_size(image.height, image.width, name)
        is_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (image.width, image.height) if is_turned else (image.height, image.width)


def check_writable(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> None:
    """Find out before long work whether `save_image` could write `path`; leaves nothing behind.

    Args:
        path: the file.
        size: height and width in pixels of the image, if they are known.

    Raises:
        ImageError: unknown suffix, or an image too large for the format.
        InputError: `path` is a folder or a device, or its folder takes no file.
    """
    path = Path(path)
    longest = LONGEST_SIDE.get(format_for(path))
    if size and longest and max(size) > longest:
        raise ImageError(
            f"{path}: {size[1]}x{size[0]} pixels are more than this format holds (a side of {longest}); use .png"
        )
    check_place(path)


def format_for(path: Path) -> str:
    """Pillow's name of the format that a suffix stands for; ImageError if there is none that it writes."""
    Image.init()
    known = {suffix: name for suffix, name in SUFFIXES.items() if name in Image.SAVE}
    if path.suffix.lower() in known:
        return known[path.suffix.lower()]
    endings = ", ".join(known)
    if path.is_dir() or not path.suffix:
        kind = "is a folder" if path.is_dir() else "names no format"
        raise ImageError(f"{path}: {kind}; name an image file, such as {path / 'out.png'} (or {endings})")
    raise ImageError(f"{path}: unknown image format '{path.suffix}'; use one of {endings}")


def check_size(height: int, width: int, source: str) -> None:
    """Raise ImageError unless the library can work with an image of this many pixels."""
    if height * width > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise ImageError(f"{source}: {width}x{height} is more than {limit} megapixels; scale it down first")
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{source}: {width}x{height} is too small; both sides need {MIN_SIDE} pixels")


def open_image(path: Path) -> Image.Image:
    """Open a file with Pillow, in time and memory that have bounds; inside `quiet_pillow`."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path}: is a folder; name an image file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: is a pipe or a device; write the image to a file first")
    if status.st_size == 0:
        raise ImageError(f"{path}: the file is empty; download or export it again")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"{path}: is larger than {MAX_BYTES >> 30} GiB; export it as a smaller file")
    Image.init()
    # Only these: Pillow's other readers are of no use here, and one of them runs Ghostscript.
    formats = [name for name in READABLE if name in Image.OPEN]
    return Image.open(path, formats=formats)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings from Pillow while it reads, and our own limit of pixels: its WebP reader allocates as it opens."""
    with _pillow_globals, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn whatever reading a file raises into an ImageError that says what to do."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever their parser trips over
        raise ImageError(f"{name}: {_why_unreadable(error, name)}") from error


def _why_unreadable(error: Exception, name: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; check the path"
    if isinstance(error, UnidentifiedImageError):
        return _what_else(name) or f"not an image, or too damaged to tell; use one of {', '.join(READABLE)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 1_000_000} megapixels; scale it down first"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read ({error.strerror}); check the path and its permissions"
    if isinstance(error, (UnicodeError, ValueError)) and "\0" in name:
        return "no file can have this name; check the path"
    return f"damaged or cut short ({error}); download or export it again"


def _what_else(name: str) -> str | None:
    """What a file is that people take for an image, and what to do with it."""
    with open(name, "rb") as file:
        start = file.read(1024)
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the image itself; run `git lfs pull`"
    if start[4:8] == b"ftyp" and start[8:12] in (
        b"heic",
        b"heix",
        b"heim",
        b"heis",
        b"hevc",
        b"hevx",
        b"mif1",
        b"msf1",
    ):
        return "a HEIC image, which cannot be read here; export it as JPEG or PNG"
    if b"<svg" in start.lower() or name.lower().endswith((".svg", ".svgz")):
        return "an SVG drawing, which has no pixels; export it as PNG"
    if start.startswith(b"%PDF"):
        return "a PDF document; export the page as PNG"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page, not an image; download the image itself"
    return None
