"""Images from files or memory as tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from splice_ff.errors import ImageError
from splice_ff.images.formats import check_size, explained, open_image, quiet_pillow

ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
"""What `load_image` takes."""


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image as the library wants it.

    Attributes:
        rgb: `(1, 3, H, W)` float32 in [0, 1], sRGB. Where alpha is 0, colors are those of the nearest visible pixels:
            what a file hides there is no part of the image.
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


def load_image(source: ImageInput) -> LoadedImage:
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
        ImageError: what `splice_ff.images.check_readable` raises; the file is damaged; shape, type or values are not
            those listed; or no pixel is visible.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
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


def load_images(source: ImageInput | Sequence[ImageInput]) -> list[LoadedImage]:
    """Read one image or several: a list or tuple of what `load_image` takes, an array (B, H, W, C) or a tensor
    (B, C, H, W).

    Raises:
        ImageError: there is none, or one of them cannot be used; of several, the message says which.
    """
    if not is_batch(source):
        return [load_image(source)]  # type: ignore[arg-type]
    images = []
    for i, image in enumerate(source):  # type: ignore[arg-type]
        try:
            images.append(load_image(image))
        except ImageError as error:
            is_file = isinstance(image, (str, os.PathLike))
            raise (error if is_file else ImageError(f"image {i}: {error}")) from error
    if not images:
        raise ImageError("no image given; give at least one")
    return images


def is_batch(source: object) -> bool:
    """Whether `load_images` takes it for several images, be it several of one."""
    return isinstance(source, (list, tuple)) or (isinstance(source, (np.ndarray, Tensor)) and source.ndim == 4)


def check_images(images: Tensor, name: str) -> None:
    """Check a batch of images that came from outside the library.

    Raises:
        ImageError: not a floating-point tensor (B, 3, H, W), or with values outside [0, 1]; it says what was given.
    """
    if not isinstance(images, Tensor):
        raise ImageError(f"{name}: {type(images).__name__} given; expected a tensor (B, 3, H, W), float in [0, 1]")
    given = f"{name}: tensor {tuple(images.shape)} of {images.dtype} given"
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ImageError(f"{given}; expected (B, 3, H, W), float in [0, 1]")
    check_size(images.shape[2], images.shape[3], name)
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):  # written so that NaN fails too
        low, high = images.min().item(), images.max().item()
        raise ImageError(f"{given}, with values from {low:.4g} to {high:.4g}; expected [0, 1]: divide or clamp first")


def _frames_note(image: Image.Image) -> tuple[str, ...]:
    frames = getattr(image, "n_frames", 1)
    # Phones write MPO: a photograph, then its depth map or thumbnail. That is not worth a note.
    if frames == 1 or image.format == "MPO":
        return ()
    if image.format == "TIFF":
        return (f"several pages: first of {frames} pages used",)
    return (f"animated: first of {frames} frames used",)


def _from_pil(image: Image.Image, source: str, notes: tuple[str, ...] = ()) -> LoadedImage:
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


def _from_array(array: NDArray[Any], source: str, notes: tuple[str, ...] = ()) -> LoadedImage:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ImageError(f"{source}: shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
    check_size(array.shape[0], array.shape[1], source)
    kind = array.dtype.kind
    if kind not in "bf" and not (kind == "u" and array.dtype.itemsize <= 2):
        raise ImageError(f"{source}: type {array.dtype}; expected bool, uint8, uint16, or float in [0, 1]")
    white = np.iinfo(array.dtype).max if kind == "u" else 1
    planes = torch.from_numpy(np.atleast_3d(array).astype(np.float32) / white)
    return _finish(planes.permute(2, 0, 1)[None], source, notes)


def _from_tensor(tensor: Tensor) -> LoadedImage:
    shape = tuple(tensor.shape)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ImageError(f"tensor: shape {shape}, of a kind without plain values; make it dense first")
    tensor = tensor.as_subclass(Tensor)
    planes = tensor.detach()[None] if tensor.ndim == 3 else tensor.detach()
    if planes.ndim != 4 or planes.shape[0] != 1 or planes.shape[1] not in (1, 3, 4):
        raise ImageError(f"tensor: shape {shape}; expected (C, H, W) or (1, C, H, W), C one of 1, 3, 4")
    check_size(planes.shape[2], planes.shape[3], "tensor")
    if planes.dtype == torch.uint8:
        planes = planes.float() / 255
    elif planes.is_floating_point():
        planes = planes.to(torch.float32, copy=True)
    else:
        raise ImageError(f"tensor: shape {shape}, type {tensor.dtype}; expected uint8, or float in [0, 1]")
    return _finish(planes, "tensor")


def _finish(planes: Tensor, source: str, notes: tuple[str, ...] = ()) -> LoadedImage:
    """Check the values of `(1, C, H, W)` float32 with 1, 3 or 4 channels, and part colors from alpha."""
    if not (planes.min() >= 0 and planes.max() <= 1):  # written so that NaN fails too
        raise ImageError(f"{source}: values outside [0, 1] or not finite; clamp or rescale them first")
    rgb = planes[:, :3].expand(-1, 3, -1, -1).contiguous()
    alpha = planes[:, 3:].contiguous()
    if not alpha.numel() or alpha.min() == 1:
        return LoadedImage(rgb, None, source, notes)
    if alpha.max() == 0:
        raise ImageError(f"{source}: no pixel is visible, alpha is 0 everywhere; export it without alpha")
    return LoadedImage(torch.where(alpha > 0, rgb, _spread(rgb, alpha)), alpha, source, notes)


def _spread(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Colors for all pixels from those that alpha shows: (1, 3, H, W) from (1, 3, H, W) and (1, 1, H, W).

    A pyramid of means weighted by alpha, read from coarse to fine: each level fills what the finer ones leave open
    (the pull-push of Gortler et al., "The Lumigraph", 1996). Smooth, so that the border of a cut-out makes no edge.
    """
    if min(rgb.shape[-2:]) == 1:
        return ((rgb * alpha).sum((-2, -1), keepdim=True) / alpha.sum().clamp_min(1e-12)).expand_as(rgb)
    weight = F.avg_pool2d(alpha, 2, ceil_mode=True)
    mean = F.avg_pool2d(rgb * alpha, 2, ceil_mode=True) / weight.clamp_min(1e-12)
    coarse = torch.where(weight > 0, mean, _spread(mean, weight))
    return F.interpolate(coarse, rgb.shape[-2:], mode="bilinear")
