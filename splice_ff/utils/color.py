"""CIE L*a*b* (D65), in which equal distances look about equally different; and Reinhard's color transfer in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luma of sRGB (ITU-R BT.601)."""

# Linear sRGB to XYZ (IEC 61966-2-1), each row divided by the D65 white point's X, Y or Z.
RGB_TO_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
WHITE = torch.tensor([0.95047, 1.0, 1.08883])
XYZ_TO_LAB = torch.tensor([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
OFFSET = torch.tensor([-16.0, 0.0, 0.0])
KNEE = 6 / 29
"""Where the cube root of CIE's lightness gives way to a straight line."""


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [0, 1] to L* in [0, 100], a* and b* in about [-110, 100]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp_min(0) ** 2.4)
    xyz = _mix(linear, RGB_TO_XYZ / WHITE[:, None])
    root = torch.where(xyz > KNEE**3, xyz.clamp_min(KNEE**3) ** (1 / 3), xyz / (3 * KNEE**2) + 4 / 29)
    return _mix(root, XYZ_TO_LAB) + OFFSET.to(rgb).view(3, 1, 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colors that sRGB does not hold are clamped."""
    root = _mix(lab - OFFSET.to(lab).view(3, 1, 1), torch.linalg.inv(XYZ_TO_LAB))
    xyz = torch.where(root > KNEE, root**3, 3 * KNEE**2 * (root - 4 / 29))
    linear = _mix(xyz, torch.linalg.inv(RGB_TO_XYZ / WHITE[:, None]))
    rgb = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)
    return rgb.clamp(0, 1)


def match_colors(structure: Tensor, appearance: Tensor) -> Tensor:
    """The structure image with the appearance image's mean and deviation of L*, a* and b*.

    Reinhard et al., "Color Transfer between Images", 2001, in CIE Lab instead of their l-alpha-beta. Images
    (1, 3, H, W) in [0, 1], any sizes; the result has the structure image's.
    """
    source, target = rgb_to_lab(structure), rgb_to_lab(appearance)
    (std, mean), (wanted_std, wanted_mean) = (torch.std_mean(x, (-2, -1), keepdim=True) for x in (source, target))
    return lab_to_rgb((source - mean) * (wanted_std / std.clamp_min(1e-6)) + wanted_mean)


def half_sphere(n: int) -> Tensor:
    """n directions spread evenly (Fibonacci lattice) over half a sphere, (n, 3): the other half repeats them."""
    z = (torch.arange(n) + 0.5) / n
    angle = torch.arange(n) * math.pi * (3 - math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1)


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix.to(x), x)
