"""A row's image as bytes of color: read, turned upright, resized and cropped.

Rows are decoded here and not by `datasets`, because a damaged image among a million must be skipped and counted, not
end the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from splice_ff.errors import ImageError, first_line
from splice_ff.images import READABLE, load_image
from splice_ff.images.formats import MAX_BYTES, check_size, explained, open_image, quiet_pillow

MAX_ASPECT = 3
"""Of longer images the middle is kept: a 16 x 60 000 strip resized to 144 would take 230 MB."""


def decode(row: Mapping[str, Any], size: int, generator: torch.Generator | None = None) -> Tensor:
    """A row's image as a square: `(3, size, size)` uint8, sRGB.

    The shorter side is resized to `size` and the middle kept; with a `generator` a random square, mirrored
    half of the time.

    Raises:
        ImageError: it cannot be read.
    """
    return square_crop(load_row(row, size), size, generator)


def load_row(row: Mapping[str, Any], side: int) -> Tensor:
    """A row's image, `(3, H, W)` uint8, sRGB, its shorter side `side` pixels and its longer at most 3 times that.

    Orientation, color profile, gray and palettes as in `splice_ff.images.load_image`; alpha is dropped.

    Raises:
        ImageError: it cannot be read.
    """
    cell = row["image"]
    if not isinstance(cell, Mapping) or not (cell.get("bytes") or cell.get("path")):
        raise ImageError("a row without an image")
    data, path = cell.get("bytes"), cell.get("path")
    name = path or "an image"
    try:
        with quiet_pillow(), _open(data, path) as image:
            check_size(image.height, image.width, name)
            image.draft(None, (2 * side, 2 * side))  # JPEG decodes at a half, quarter or eighth of its size
            pixels = _pixels(image)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: takes more memory than there is") from error
    except Exception as error:  # Pillow's readers raise whatever their parser trips over
        raise ImageError(f"{name}: {first_line(error)}") from error
    height, width = pixels.shape[-2:]
    longest = MAX_ASPECT * min(height, width)
    if max(height, width) > longest:
        pixels = TF.center_crop(pixels, [min(height, longest), min(width, longest)])
    return TF.resize(pixels, [side], interpolation=InterpolationMode.BICUBIC, antialias=True)


def side_for_crops(size: int) -> int:
    """Shorter side, in pixels, that leaves crops of `size` an eighth to move."""
    return size + size // 8


def close_up(size: int, least: float, generator: torch.Generator) -> int:
    """Pixels of a square that will be enlarged to `size`: a random share of it, `least` or more; all of it if 1."""
    return size if least == 1 else round(size * (least + (1 - least) * torch.rand((), generator=generator).item()))


def square_crop(image: Tensor, size: int, generator: torch.Generator | None = None, shown: int | None = None) -> Tensor:
    """A square of `(3, H, W)`: `(3, size, size)`, from the middle; with a generator from anywhere, perhaps mirrored.

    A square of `shown` pixels, if given, is enlarged to `size`.
    """
    if shown is not None and shown != size:
        square = square_crop(image, shown, generator)
        return TF.resize(square, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    top, left = (n - size for n in image.shape[-2:])
    if generator is None:
        top, left, mirrored = top // 2, left // 2, False
    else:
        draw = torch.rand(3, generator=generator).tolist()
        top, left, mirrored = int(draw[0] * (top + 1)), int(draw[1] * (left + 1)), draw[2] < 0.5
    square = image[..., top : top + size, left : left + size]
    return square.flip(-1) if mirrored else square.contiguous()


def _open(data: bytes | None, path: str | None) -> Image.Image:
    if data is None and path is not None and "://" not in path:
        with explained(path):
            return open_image(Path(path))
    if data is None:  # of a streamed folder on the hub
        import fsspec

        with fsspec.open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"{path}: is larger than {MAX_BYTES >> 30} GiB")
    Image.init()
    return Image.open(BytesIO(data), formats=[name for name in READABLE if name in Image.OPEN])


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W) uint8. Plain RGB, as most are, goes straight: the floats of `load_image` take longer than decoding."""
    if image.mode == "RGB" and "icc_profile" not in image.info and "transparency" not in image.info:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation == 1:
            return TF.pil_to_tensor(image)
    return (load_image(image).rgb[0] * 255).round().to(torch.uint8)
