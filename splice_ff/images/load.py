"""Images from files or memory as tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from splice_ff.errors import ImageError
from splice_ff.images.decode import DecodedImage, decode_image, from_planes
from splice_ff.images.formats import check_size

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
    return _on(torch.device("cpu"), decode_image(source))


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
    if planes.shape[1] == 4:  # hidden colors are spread on the CPU
        return _on(planes.device, from_planes(planes[0].cpu().numpy(), "tensor"))
    if not (planes.min() >= 0 and planes.max() <= 1):  # written so that NaN fails too
        raise ImageError("tensor: values outside [0, 1] or not finite; clamp or rescale them first")
    return LoadedImage(planes.expand(-1, 3, -1, -1).contiguous(), None, "tensor")


def _on(device: torch.device, image: DecodedImage) -> LoadedImage:
    alpha = None if image.alpha is None else torch.from_numpy(image.alpha)[None].to(device)
    return LoadedImage(torch.from_numpy(image.rgb)[None].to(device), alpha, image.source, image.notes)
