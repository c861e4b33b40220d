"""Reading images into tensors and writing tensors as images, safely.

Inside the library an image is a float32 sRGB tensor `(1, 3, H, W)` in [0, 1]. Everything that files do
differently (orientation tags, color profiles, palettes, alpha, 16 bits) is settled here, at the border.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from splice_ff.errors import ImageError
from splice_ff.utils.files import atomic_write, check_place, reason

MAX_PIXELS = 64_000_000
MIN_SIDE = 16  # a ViT patch, and the generator's five halvings, need this much

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
            ".bmp": "BMP", ".avif": "AVIF"}  # fmt: skip
READABLE = (*dict.fromkeys(SUFFIXES.values()), "GIF")
WITH_ALPHA = {"PNG", "WEBP", "TIFF", "AVIF"}
WITH_EXIF = {"JPEG", "WEBP", "TIFF", "AVIF"}
QUALITY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 90},
}

_pillow_globals = threading.Lock()


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image as the library wants it.

    Attributes:
        rgb: `(1, 3, H, W)` float32 in [0, 1], sRGB.
        alpha: `(1, 1, H, W)` float32 in [0, 1], or None where every pixel is opaque.
        source: the path, or "array", "PIL image" or "tensor".
        notes: what the user should hear about the reading: "animated: first of 12 frames used".
    """

    rgb: Tensor
    alpha: Tensor | None
    source: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[-2], self.rgb.shape[-1]


def load_image(source: str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor) -> LoadedImage:
    """Read an image from a file or take one from memory.

    Args:
        source: one of these, where a fourth channel is alpha, not premultiplied

            - a path to a PNG, JPEG, WebP, TIFF, BMP, AVIF or GIF file, or a PIL image, of any mode. The EXIF
              orientation is applied and an embedded color profile converted to sRGB (not for 16-bit gray,
              with a note). Of an animated file the first frame is used, with a note. 32-bit gray must hold
              integers in [0, 65535] or floats in [0, 1].
            - an array `(H, W)`, `(H, W, 3)` or `(H, W, 4)`: bool, uint8, uint16, or float in [0, 1].
            - a tensor `(C, H, W)` or `(1, C, H, W)` with 1, 3 or 4 channels: uint8, or float in [0, 1]. It is
              copied and stays on its device.

    Raises:
        ImageError: the file is missing, a folder, empty, unreadable, damaged or not an image; it has more
            than `MAX_PIXELS` pixels or a side under `MIN_SIDE`; or its shape, type or values are other ones.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, "array")
    if not isinstance(source, (str, os.PathLike, Image.Image)):
        raise ImageError(f"{type(source).__name__} is no image; pass a path, PIL image, array or tensor")
    name = "PIL image" if isinstance(source, Image.Image) else os.fspath(source)
    try:
        if isinstance(source, Image.Image):
            return _from_pil(source, name)
        with _open(Path(name)) as image:
            return _from_pil(image, name, _frames_note(image))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever their parser trips over
        raise ImageError(f"{name}: {_why_unreadable(error)}") from error


def save_image(
    path: str | os.PathLike[str],
    rgb: Tensor,
    *,
    alpha: Tensor | None = None,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Write an image, whole or not at all, in the format that the suffix of `path` names.

    A missing folder is created. Values outside [0, 1] are clamped, then rounded to 8 bits.

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp or .avif.
        rgb: `(3, H, W)` or `(1, 3, H, W)`, sRGB in [0, 1], any float type and device.
        alpha: `(1, H, W)` or `(1, 1, H, W)` in [0, 1]; left out of JPEG and BMP, which cannot hold it.
        settings: what made the image. In PNG one text entry each; in JPEG, WebP, TIFF and AVIF
            "key=value; key=value" in UTF-8 as the EXIF image description; left out of BMP.

    Returns:
        `path` as a Path.

    Raises:
        ImageError: unknown suffix, wrong shapes, values that are not finite, or a place that takes no file.
    """
    path = Path(path)
    image_format = _format_for(path)
    image = _to_pil(path, rgb, alpha if image_format in WITH_ALPHA else None)
    options = dict(QUALITY.get(image_format, {}))
    if settings and image_format == "PNG":
        options["pnginfo"] = PngInfo()
        for key, value in settings.items():
            options["pnginfo"].add_text(key, value)
    elif settings and image_format in WITH_EXIF:
        description = "; ".join(f"{key}={value}" for key, value in settings.items())
        options["exif"] = Image.Exif()
        # Bytes, as Pillow replaces letters outside ASCII; cut, as JPEG holds at most 64 KiB of EXIF.
        options["exif"][ExifTags.Base.ImageDescription] = description.encode()[:60_000]
    try:
        atomic_write(path, lambda temporary: image.save(temporary, format=image_format, **options))
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({reason(error)}); choose another name or folder") from error
    return path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `save_image` could write `path`; leaves nothing behind.

    Raises:
        ImageError: unknown suffix, `path` is a folder or a device, or its folder takes no file.
    """
    _format_for(Path(path))
    check_place(path)


def _open(path: Path) -> Image.Image:
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; name an image file in it")
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty; download or export it again")
    Image.init()
    # Only these: Pillow's other readers are of no use here, and one of them runs Ghostscript.
    formats = [name for name in READABLE if name in Image.OPEN]
    with _pillow_globals, warnings.catch_warnings():
        # Pillow warns of more pixels than its limit and refuses twice as many. Our own check does the first;
        # the second must stay, for the WebP reader allocates its canvas while it opens the file.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
        try:
            return Image.open(path, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; check the path"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image, or too damaged to tell; use one of {', '.join(READABLE)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 1_000_000} megapixels; scale it down first"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read ({error.strerror}); check the path and its permissions"
    return f"damaged or cut short ({error}); download or export it again"


def _frames_note(image: Image.Image) -> tuple[str, ...]:
    frames = getattr(image, "n_frames", 1)
    # Phones write MPO: a photograph, then its depth map or thumbnail. That is not worth a note.
    if frames == 1 or image.format == "MPO":
        return ()
    if image.format == "TIFF":
        return (f"several pages: first of {frames} pages used",)
    return (f"animated: first of {frames} frames used",)


def _from_pil(image: Image.Image, source: str, notes: tuple[str, ...] = ()) -> LoadedImage:
    _check_size(image.height, image.width, source)  # from the header: nothing is decoded yet
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
    return _finish(F.pil_to_tensor(colors)[None].float() / 255, source, notes)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    parsed = ImageCms.ImageCmsProfile(BytesIO(profile))
    if image.mode == "L" and parsed.profile.xcolor_space.strip() == "RGB":
        image = image.convert("RGB")  # gray saved from an RGB editor keeps that editor's profile
    converted = ImageCms.profileToProfile(image, parsed, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # it is None only when converting in place
    return converted


def _from_array(array: NDArray[Any], source: str, notes: tuple[str, ...] = ()) -> LoadedImage:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ImageError(f"{source}: shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
    _check_size(array.shape[0], array.shape[1], source)
    kind = array.dtype.kind
    if kind not in "bf" and not (kind == "u" and array.dtype.itemsize <= 2):
        raise ImageError(f"{source}: type {array.dtype}; expected bool, uint8, uint16, or float in [0, 1]")
    white = np.iinfo(array.dtype).max if kind == "u" else 1
    planes = torch.from_numpy(np.atleast_3d(array).astype(np.float32) / white)
    return _finish(planes.permute(2, 0, 1)[None], source, notes)


def _from_tensor(tensor: Tensor) -> LoadedImage:
    shape = tuple(tensor.shape)
    planes = tensor.detach()[None] if tensor.ndim == 3 else tensor.detach()
    if planes.ndim != 4 or planes.shape[0] != 1 or planes.shape[1] not in (1, 3, 4):
        raise ImageError(f"tensor: shape {shape}; expected (C, H, W) or (1, C, H, W), C one of 1, 3, 4")
    _check_size(planes.shape[2], planes.shape[3], "tensor")
    if planes.dtype == torch.uint8:
        planes = planes.float() / 255
    elif planes.is_floating_point():
        planes = planes.to(torch.float32, copy=True)
    else:
        raise ImageError(f"tensor: shape {shape}, type {tensor.dtype}; expected uint8, or float in [0, 1]")
    return _finish(planes, "tensor")


def _check_size(height: int, width: int, source: str) -> None:
    if height * width > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise ImageError(f"{source}: {width}x{height} is more than {limit} megapixels; scale it down first")
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{source}: {width}x{height} is too small; both sides need {MIN_SIDE} pixels")


def _finish(planes: Tensor, source: str, notes: tuple[str, ...] = ()) -> LoadedImage:
    """Check the values of `(1, C, H, W)` float32 with 1, 3 or 4 channels, and part colors from alpha."""
    if not (planes.min() >= 0 and planes.max() <= 1):  # written so that NaN fails too
        raise ImageError(f"{source}: values outside [0, 1] or not finite; clamp or rescale them first")
    rgb = planes[:, :3].expand(-1, 3, -1, -1).contiguous()
    alpha = planes[:, 3:].contiguous()
    return LoadedImage(rgb, alpha if alpha.numel() and alpha.min() < 1 else None, source, notes)


def _format_for(path: Path) -> str:
    Image.init()
    known = {suffix: name for suffix, name in SUFFIXES.items() if name in Image.SAVE}
    if path.suffix.lower() not in known:
        raise ImageError(f"{path}: unknown image format '{path.suffix}'; use one of {', '.join(known)}")
    return known[path.suffix.lower()]


def _to_pil(path: Path, rgb: Tensor, alpha: Tensor | None) -> Image.Image:
    planes = (rgb[0] if rgb.ndim == 4 and rgb.shape[0] == 1 else rgb).float()
    if planes.ndim != 3 or planes.shape[0] != 3 or planes.numel() == 0:
        raise ImageError(f"{path}: cannot write shape {tuple(rgb.shape)}; expected (3, H, W) or (1, 3, H, W)")
    if alpha is not None:
        plane = (1, *planes.shape[1:])
        if tuple(alpha.shape) not in (plane, (1, *plane)):
            raise ImageError(f"{path}: alpha of shape {tuple(alpha.shape)} does not fit {tuple(rgb.shape)}")
        planes = torch.cat([planes, alpha.to(planes).reshape(plane)])
    if not planes.isfinite().all():
        raise ImageError(f"{path}: not written: the image holds NaN or infinity; check the run before it")
    image: Image.Image = F.to_pil_image((planes.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    return image
