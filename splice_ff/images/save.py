"""Tensors as image files, or as what people work with in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from splice_ff.errors import ImageError, InputError
from splice_ff.images.encode import WITH_ALPHA, write_image
from splice_ff.images.formats import format_for

OutputType: TypeAlias = Literal["pil", "np", "pt"]
"""As in diffusers: a PIL image, an array (H, W, C), or a tensor (C, H, W)."""

OVERSHOOT = 1.0
"""How far beyond [0, 1] values may lie and be clamped; further off, they are of another range, such as [0, 255]."""


def save_image(
    path: str | os.PathLike[str],
    rgb: Tensor,
    *,
    alpha: Tensor | None = None,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Write an image, whole or not at all, in the format that the suffix of `path` names.

    A missing folder is created. Values a little outside [0, 1] are clamped, then rounded to 8 bits.

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp or .avif.
        rgb: `(3, H, W)` or `(1, 3, H, W)`, sRGB; any float type, in [0, 1], or uint8; any device.
        alpha: `(1, H, W)` or `(1, 1, H, W)`, likewise. Left out of JPEG and BMP, which cannot hold it.
        settings: what made the image. In PNG one text entry each; in JPEG, WebP, TIFF and AVIF
            "key=value; key=value" in UTF-8 as the EXIF image description; left out of BMP.

    Returns:
        `path` as a Path.

    Raises:
        ImageError: unknown suffix, wrong shapes or types, values that are not finite or of another range, more pixels
            than the format holds, or a place that takes no file.
    """
    path = Path(path).expanduser()
    has_alpha = format_for(path) in WITH_ALPHA
    return write_image(
        path, Image.fromarray(_to_bytes(f"{path}: not written", rgb, alpha if has_alpha else None)), settings
    )


def check_output_type(output_type: str) -> None:
    """Raise InputError unless `to_output` knows it."""
    if output_type not in get_args(OutputType):
        raise InputError(f"unknown output_type '{output_type}'. Known: {', '.join(get_args(OutputType))}")


def to_output(rgb: Tensor, alpha: Tensor | None, output_type: OutputType) -> Any:
    """An image for people to work with, with its alpha if it has one.

    Args:
        rgb: `(1, 3, H, W)` or `(3, H, W)` in [0, 1].
        alpha: `(1, 1, H, W)` or `(1, H, W)` in [0, 1], or None.
        output_type: "pil": a PIL image, RGB or RGBA. "np": a float32 array (H, W, 3 or 4) in [0, 1]. "pt": a float32
            tensor (3 or 4, H, W) in [0, 1], on the device of `rgb`.

    Raises:
        InputError: another output type, or an image that is none.
    """
    check_output_type(output_type)
    if output_type == "pil":
        return Image.fromarray(_to_bytes("output", rgb, alpha))
    planes = _planes("output", rgb, alpha).clamp(0, 1)
    return planes.permute(1, 2, 0).cpu().numpy() if output_type == "np" else planes


def _to_bytes(name: str, rgb: Tensor, alpha: Tensor | None) -> NDArray[np.uint8]:
    """(H, W, 3 or 4)."""
    planes = _planes(name, rgb, alpha)
    return (planes.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def _planes(name: str, rgb: Tensor, alpha: Tensor | None) -> Tensor:
    """(3 or 4, H, W), float32 and near [0, 1]."""
    planes = _unit(name, rgb, 3)
    if alpha is None:
        return planes
    opacity = _unit(name, alpha, 1)
    if opacity.shape[1:] != planes.shape[1:]:
        raise ImageError(f"{name}: alpha of shape {tuple(alpha.shape)} does not fit {tuple(rgb.shape)}")
    return torch.cat([planes, opacity.to(planes.device)])


def _unit(name: str, given: Tensor, channels: int) -> Tensor:
    """(channels, H, W) in float32, near [0, 1]."""
    if not isinstance(given, Tensor):
        raise ImageError(f"{name}: {type(given).__name__} given; expected a tensor ({channels}, H, W)")
    tensor = given.detach().as_subclass(Tensor)
    tensor = tensor[0] if tensor.ndim == 4 and tensor.shape[0] == 1 else tensor
    if tensor.ndim != 3 or tensor.shape[0] != channels or tensor.numel() == 0:
        shapes = f"({channels}, H, W) or (1, {channels}, H, W)"
        raise ImageError(f"{name}: shape {tuple(given.shape)} given; expected {shapes}")
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise ImageError(f"{name}: values of {given.dtype} given; expected float in [0, 1], or uint8")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise ImageError(f"{name}: the image holds NaN or infinity; check the run before it")
    if tensor.min() < -OVERSHOOT or tensor.max() > 1 + OVERSHOOT:
        low, high = tensor.min().item(), tensor.max().item()
        raise ImageError(f"{name}: values from {low:.4g} to {high:.4g}; expected [0, 1]: divide by 255?")
    return tensor
