"""Random crops of batched images, another one for each, made where the images are held.

torchvision's transforms draw one crop per call; here each image of a batch has its own. Everything is drawn on the
CPU from one generator, so that a GPU sees the same crops as a CPU, and a resumed run those of an unbroken one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.ops import roi_align

from splice_ff.pretraining.config import ViewsConfig
from splice_ff.utils.color import LUMA

ASPECT = (3 / 4, 4 / 3)
"""Width to height of a crop, as in torchvision's RandomResizedCrop."""
SIGMA = (0.1, 2.0)
"""Of the blur, in pixels of the crop, as in DINO."""
KERNEL = 9


def crops(pixels: Tensor, size: int, area: tuple[float, float], views: ViewsConfig, generator: Generator) -> Tensor:
    """A random resized crop of each image, mirrored half of the time, with a little jitter and sometimes a blur.

    Args:
        images: (B, 3, S, S) uint8.
        size: pixels of the crops.
        area: smallest and largest share of the image's area.
        views: how strong jitter and blur are.
        generator: on the CPU.

    Returns:
        (B, 3, size, size) float32 in [0, 1], on the images' device.
    """
    count, device = len(pixels), pixels.device
    boxes = random_boxes(count, pixels.shape[-1], area, generator).to(device)
    indexed = torch.cat([torch.arange(count, device=device)[:, None], boxes], 1)
    # Averages as many samples as an output pixel covers: crops are scaled down without aliasing.
    images = roi_align(pixels.float() / 255, indexed, [size, size], sampling_ratio=-1, aligned=True)
    mirrored = torch.rand(count, generator=generator).to(device) < 0.5
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    factors = 1 + views.jitter * (2 * torch.rand(3, count, generator=generator) - 1)
    images = jitter(images, *factors.to(device))
    blurred = torch.rand(count, generator=generator).to(device) < views.blur
    sigmas = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * torch.rand(count, generator=generator).to(device)
    if views.blur:
        images = torch.where(blurred.view(-1, 1, 1, 1), blur(images, sigmas), images)
    return images


def random_boxes(count: int, side: int, area: tuple[float, float], generator: Generator) -> Tensor:
    """Boxes (count, 4) as left, top, right, bottom in pixels, inside a square of `side`.

    Their area is uniform in `area`, their aspect log-uniform in `ASPECT`; one too long for the square is shortened.
    """
    areas = area[0] + (area[1] - area[0]) * torch.rand(count, generator=generator)
    low, high = (torch.tensor(a).log() for a in ASPECT)
    aspect = (low + (high - low) * torch.rand(count, generator=generator)).exp()
    width, height = ((areas * a).sqrt().clamp(max=1.0) * side for a in (aspect, 1 / aspect))
    left, top = ((side - length) * torch.rand(count, generator=generator) for length in (width, height))
    return torch.stack([left, top, left + width, top + height], 1).clamp(0, side)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Brightness, then contrast, then saturation, by a factor (B,) for each of (B, 3, H, W) in [0, 1]."""
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in (brightness, contrast, saturation))
    images = (images * brightness).clamp(0, 1)
    images = torch.lerp(_gray(images).mean((-2, -1), keepdim=True), images, contrast).clamp(0, 1)
    return torch.lerp(_gray(images).expand_as(images), images, saturation).clamp(0, 1)


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """A Gaussian blur of another width (B,), in pixels, for each of (B, 3, H, W)."""
    offsets = torch.arange(KERNEL, device=images.device) - KERNEL // 2
    kernels = torch.softmax(-(offsets**2) / (2 * sigmas[:, None] ** 2), 1).repeat_interleave(images.shape[1], 0)
    count, reach = len(kernels), KERNEL // 2
    flat = F.pad(images, (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[None]
    flat = F.conv2d(flat, kernels.view(count, 1, 1, KERNEL), groups=count)
    return F.conv2d(flat, kernels.view(count, 1, KERNEL, 1), groups=count).view_as(images)


def _gray(images: Tensor) -> Tensor:
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
