"""Images side by side: python -m eval.grid OUT IMAGE..."""

from __future__ import annotations

import sys

import torch
from torchvision.transforms.v2 import functional as TF

from splice_ff.images import load_image, save_image


def side_by_side(paths: list[str], height: int = 300) -> torch.Tensor:
    """Images at one height with a white line between: (1, 3, height, W) in [0, 1]."""
    gap = torch.ones(1, 3, height, 8)
    row = [gap]
    for path in paths:
        rgb = load_image(path).rgb
        width = round(rgb.shape[-1] * height / rgb.shape[-2])
        row += [TF.resize(rgb, [height, width], antialias=True), gap]
    return torch.cat(row[1:-1], -1)


if __name__ == "__main__":
    save_image(sys.argv[1], side_by_side(sys.argv[2:]))
