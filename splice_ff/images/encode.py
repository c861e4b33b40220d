"""PIL images as files, whole or not at all, with what made them; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from splice_ff.errors import ImageError
from splice_ff.images.formats import check_writable, format_for
from splice_ff.utils.files import reason, write_file

WITH_ALPHA = {"PNG", "WEBP", "TIFF", "AVIF"}
WITH_EXIF = {"JPEG", "WEBP", "TIFF", "AVIF"}
QUALITY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 90},
}


def write_image(path: Path, image: Image.Image, settings: Mapping[str, str] | None = None) -> Path:
    """Write an image in the format that the suffix of `path` names; a missing folder is created.

    Args:
        path: see `splice_ff.images.save_image`.
        image: RGB or RGBA; alpha is left out of formats that cannot hold it.
        settings: see `splice_ff.images.save_image`.

    Returns:
        `path`.

    Raises:
        ImageError: unknown suffix, more pixels than the format holds, or a place that takes no file.
    """
    image_format = format_for(path)
    if image.mode == "RGBA" and image_format not in WITH_ALPHA:
        image = image.convert("RGB")
    check_writable(path, (image.height, image.width))
    options = dict(QUALITY.get(image_format, {}))
    # A file's name may hold bytes that are no text.
    facts = {key: str(value).encode("utf-8", "replace").decode() for key, value in (settings or {}).items()}
    if facts and image_format == "PNG":
        options["pnginfo"] = PngInfo()
        for key, value in facts.items():
            options["pnginfo"].add_text(key, value)
    elif facts and image_format in WITH_EXIF:
        description = "; ".join(f"{key}={value}" for key, value in facts.items())
        options["exif"] = Image.Exif()
        # Bytes, as Pillow replaces letters outside ASCII; cut, as JPEG holds at most 64 KiB of EXIF.
        options["exif"][ExifTags.Base.ImageDescription] = description.encode()[:60_000]
    file = BytesIO()
    try:
        image.save(file, format=image_format, **options)
        write_file(path, file.getvalue())
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({reason(error)}); choose another name or folder") from error
    return path
