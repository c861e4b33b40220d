"""Images from files or memory as arrays, without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from splice_ff.errors import ImageError
from splice_ff.images.formats import check_size, explained, open_image, quiet_pillow

Planes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image as arrays.

    Attributes:
        rgb: `(3, H, W)` float32 in [0, 1], sRGB. Where alpha is 0, colors are those of the nearest visible pixels:
            what a file hides there is no part of the image.
        alpha: `(1, H, W)` float32 in [0, 1], or None where every pixel is opaque.
        source: the path, or "array" or "PIL image".
        notes: what the user should hear about the reading: "animated: first of 12 frames used".
    """

    rgb: Planes
    alpha: Planes | None
    source: str
    notes: tuple[str, ...] = ()


def decode_image(source: str | os.PathLike[str] | Image.Image | NDArray[Any]) -> DecodedImage:
    """Read an image from a file, a PIL image or an array; see `splice_ff.images.load_image`.

    Raises:
        ImageError: as there.
    """
    if isinstance(source, np.ndarray):
        if np.ma.is_masked(source):
            raise ImageError("array: some values are masked; fill them first")
        return _from_array(np.asarray(source), "array")
    if not isinstance(source, (str, os.PathLike, Image.Image)):
        raise ImageError(f"{type(source).__name__} is no image; pass a path, PIL image, array or tensor")
    name = "PIL image" if isinstance(source, Image.Image) else os.path.expanduser(os.fspath(source))
    with explained(name), quiet_pillow():
        if isinstance(source, Image.Image):
            return _from_pil(source, name)
        with open_image(Path(name)) as image:
            return _from_pil(image, name, _frames_note(image))


def from_planes(planes: Planes, source: str, notes: tuple[str, ...] = ()) -> DecodedImage:
    """Check the values of `(C, H, W)` float32 with 1, 3 or 4 channels, and part colors from alpha.

    Raises:
        ImageError: values outside [0, 1], or no pixel is visible.
    """
    if not (planes.min() >= 0 and planes.max() <= 1):  # written so that NaN fails too
        raise ImageError(f"{source}: values outside [0, 1] or not finite; clamp or rescale them first")
    rgb = planes[:3] if len(planes) >= 3 else np.repeat(planes, 3, 0)
    alpha = planes[3:]
    if not alpha.size or alpha.min() == 1:
        return DecodedImage(rgb, None, source, notes)
    if alpha.max() == 0:
        raise ImageError(f"{source}: no pixel is visible, alpha is 0 everywhere; export it without alpha")
    return DecodedImage(np.where(alpha > 0, rgb, _spread(rgb, alpha)), np.ascontiguousarray(alpha), source, notes)


def _frames_note(image: Image.Image) -> tuple[str, ...]:
    frames = getattr(image, "n_frames", 1)
    # Phones write MPO: a photograph, then its depth map or thumbnail. That is not worth a note.
    if frames == 1 or image.format == "MPO":
        return ()
    if image.format == "TIFF":
        return (f"several pages: first of {frames} pages used",)
    return (f"animated: first of {frames} frames used",)


def _from_pil(image: Image.Image, source: str, notes: tuple[str, ...] = ()) -> DecodedImage:
    check_size(image.height, image.width, source)  # from the header: nothing is decoded yet
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # any parsing error of Pillow's; the pixels are whole all the same
        notes += ("damaged EXIF data ignored",)
    profile = image.info.get("icc_profile")

    if image.mode == "F" or image.mode.startswith("I"):
        # 16- and 32-bit gray. Pillow would clip it to 8 bits; as an array it keeps its range.
        array = np.asarray(image)
        if array.dtype == np.int32:
            if array.min() < 0 or array.max() > 65535:
                raise ImageError(f"{source}: gray values outside [0, 65535]; export it with 8 or 16 bits")
            array = array.astype(np.uint16)
        if profile:
            notes += ("color profile of 16-bit gray ignored",)
        return _from_array(array, source, notes)

    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    # A profile describes the channels as stored, so gray and CMYK meet theirs before they become RGB.
    mode = {"L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    colors = image.convert(mode)
    if profile:
        try:
            colors = _to_srgb(colors, profile)
        except (ImageCms.PyCMSError, OSError, ValueError):
            notes += ("damaged or unsuitable color profile ignored",)
    colors = colors.convert("RGB")
    if alpha is not None:
        colors.putalpha(alpha)
    return _from_array(np.asarray(colors), source, notes)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    parsed = ImageCms.ImageCmsProfile(BytesIO(profile))
    if image.mode == "L" and parsed.profile.xcolor_space.strip() == "RGB":
        image = image.convert("RGB")  # gray saved from an RGB editor keeps that editor's profile
    converted = ImageCms.profileToProfile(image, parsed, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # it is None only when converting in place
    return converted


def _from_array(array: NDArray[Any], source: str, notes: tuple[str, ...] = ()) -> DecodedImage:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ImageError(f"{source}: shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
    check_size(array.shape[0], array.shape[1], source)
    kind = array.dtype.kind
    if kind not in "bf" and not (kind == "u" and array.dtype.itemsize <= 2):
        raise ImageError(f"{source}: type {array.dtype}; expected bool, uint8, uint16, or float in [0, 1]")
    white = np.iinfo(array.dtype).max if kind == "u" else 1
    planes = np.atleast_3d(array).astype(np.float32) / np.float32(white)
    return from_planes(np.ascontiguousarray(planes.transpose(2, 0, 1)), source, notes)


def _spread(rgb: Planes, weight: NDArray[Any]) -> Planes:
    """Colors for all pixels from the weighted ones: (3, H, W) from (3, H, W) and (1, H, W), not 0 everywhere.

    A pyramid of weighted means, read from coarse to fine: each level fills what the finer ones leave open (the
    pull-push of Gortler et al., "The Lumigraph", 1996). Smooth, so that the border of a cut-out makes no edge.
    """
    height, width = rgb.shape[1:]
    if height == width == 1:
        return rgb
    total = _pair_sums(weight)
    mean = (_pair_sums(rgb * weight) / np.maximum(total, 1e-12)).astype(np.float32)
    coarse = np.where(total > 0, mean, _spread(mean, total / total.max()))
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes])


def _pair_sums(planes: NDArray[Any]) -> Planes:
    """Sums over squares of 2 x 2 pixels, smaller at odd borders: (C, H, W) to (C, H/2, W/2), rounded up."""
    padded = np.pad(planes, ((0, 0), (0, planes.shape[1] % 2), (0, planes.shape[2] % 2)))
    channels, height, width = padded.shape
    sums: Planes = padded.reshape(channels, height // 2, 2, width // 2, 2).sum((2, 4), dtype=np.float32)
    return sums
