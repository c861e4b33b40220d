"""A few per-pair steps that start from the one-shot answer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splice_ff.losses import Losses
from splice_ff.networks.bilateral_grid import Change
from splice_ff.networks.cross_attention_unet import pixel_head
from splice_ff.one_shot.checks import check_size
from splice_ff.one_shot.model import OneShotModel
from splice_ff.per_pair.optimizer import PairOptimizer, PairResult
from splice_ff.per_pair.recipes import REFINE, Recipe
from splice_ff.vit.inputs import ViTInput

LEARNED = "coarse decoder, correction of brightness at half size"
"""What learns, for the records of those who compare; see `PairGenerator`."""
SIZE_FACTOR = 1.4
"""Working size of refining, in units of the model's: larger, as the correction has half the resolution of the work."""


def refine(
    model: OneShotModel,
    structure: Tensor,
    appearance: Tensor,
    *,
    steps: int,
    size: int | None = None,
    seed: int = 0,
    on_step: Callable[[PairOptimizer, Losses], None] | None = None,
) -> PairResult[Tensor]:
    """Fine-tune a part of the generator's UNet on one pair, see `PairGenerator`.

    It minimizes the structure and appearance losses of per-pair optimization, with the model's own backbone, which sees
    images at the model's `vit_size`; and losses of style, of colors and of edges that the structure image lacks
    (`splice_ff.losses`). The image is the best one met, by that sum over the whole image;
    the one-shot answer at the working size is the first candidate, so it is never worse.

    Args:
        model: it is left as it is.
        structure, appearance: (1, 3, H, W) in [0, 1].
        steps: how many; 50 to 200 are useful.
        size: shorter side, in pixels, at which to work; that of `refining_size` if None.
        seed: of the appearance image's views and of the similarities.
        on_step: called after every step, with the optimizer and the step's losses.

    Returns:
        The best image, at the structure image's size, with its losses.

    Raises:
        InputError: steps, a size or images that cannot be.
        DivergedError: the losses became NaN or infinite before any image was whole.
    """
    optimizer = refiner(model, structure, appearance, steps=steps, size=size, seed=seed)
    optimizer.run(on_step)
    return optimizer.result()


def refiner(
    model: OneShotModel, structure: Tensor, appearance: Tensor, *, steps: int, size: int | None = None, seed: int = 0
) -> PairOptimizer:
    """The optimizer behind `refine`, for those who take the steps themselves."""
    size = check_size(refining_size(model) if size is None else size, structure.shape)
    check_size(size, appearance.shape)
    if model.dtype != torch.float32:  # steps are smaller than what half precision can tell apart
        model = copy.deepcopy(model).float()
    recipe: Recipe = replace(
        REFINE, steps=steps, size=size, backbone=model.backbone.name, vit_input=ViTInput(model.config.vit_size)
    )
    generator = PairGenerator(model, model.embed(appearance))
    return PairOptimizer(
        structure, appearance, model.backbone, recipe, seed=seed, device=model.device, generator=generator
    )


def refining_size(model: OneShotModel) -> int:
    """Shorter side, in pixels, at which a model's images are refined unless told otherwise."""
    return round(SIZE_FACTOR * model.config.size)


class PairGenerator(nn.Module):
    """An amortized generator with one set of appearance tokens: images (B, 3, H, W) in [0, 1] to repainted ones.

    The coarse scales of the UNet's decoder learn, and with them its grid of color maps; and a correction of the pixels'
    brightness that their map at half size gives, none at first. The encoder's maps and the change of pixels that the
    model made in one shot stay, so they are computed once an image. When the finest scale learned too, coats got dots
    and eyes closed, and the steps took longer; a correction of each color was no better, and tinted eyes.

    Args:
        model: its UNet is copied, and parts of the copy learn; the model itself gives the one-shot answer.
        appearance_tokens: (1, M, C).
    """

    appearance_tokens: Tensor

    def __init__(self, model: OneShotModel, appearance_tokens: Tensor) -> None:
        super().__init__()
        self.unet = copy.deepcopy(model.generator.unet).requires_grad_(False)
        coarse = [*self.unet.upsample[:-1], *self.unet.up[:-1], self.unet.color_affine]
        for part in coarse if self.unet.guide is None else [*coarse, self.unet.guide]:
            part.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):  # it starts from 0, but drawing it must not move the caller's numbers
            correction = pixel_head(model.generator.config.unet.channels[1], changes=1)
        self.correction = correction.to(memory_format=torch.channels_last)
        self.register_buffer("appearance_tokens", appearance_tokens.clone())
        self.answer = _AnswerOnce(model)

    def forward(self, images: Tensor) -> Tensor:
        """Repaint images with the appearance tokens."""
        return self._paint(images)

    def at_full_size(self, structure: Tensor, full_structure: Tensor) -> Tensor:
        """The same, at the size of the full images."""
        return self._paint(structure, full_structure)

    def _paint(self, images: Tensor, full: Tensor | None = None) -> Tensor:
        tokens = self.appearance_tokens.expand(len(images), -1, -1)
        maps, weights, pixels, extent = self.answer(images, tokens)
        grid, half = self.unet.decode_to_half(maps, tokens, weights)
        correction = F.interpolate(self.correction(half).float(), scale_factor=2.0, mode="bilinear")
        return self.unet.apply_change(images, Change(grid, pixels + correction, extent), full)


class _Answer(NamedTuple):
    maps: list[Tensor]
    """Of the encoder, finest first, without the very finest: it made the change of pixels, which stays."""
    weights: Tensor | None
    """How cells are divided along the image's edges."""
    pixels: Tensor
    extent: tuple[float, float]
    """These two as `decode` gives them. Fine contrasts of colors are removed later: the maps, which learn, add some."""


class _AnswerOnce:
    """What a model answers in one shot, remembered: the optimizer comes back to the same few images.

    Not a module: neither the model nor the memory belongs to the pair generator's state. A copy begins with no memory.
    """

    def __init__(self, model: OneShotModel) -> None:
        self.model = model
        self.known: dict[int, tuple[Tensor, _Answer]] = {}  # with the images, so that no other can get their id

    @torch.no_grad()
    def __call__(self, images: Tensor, tokens: Tensor) -> _Answer:
        if id(images) not in self.known:
            with torch.autocast(images.device.type, enabled=False):  # a caller may want float32 later
                self.known[id(images)] = images, self._answer(images, tokens)
        return self.known[id(images)][1]

    def _answer(self, images: Tensor, tokens: Tensor) -> _Answer:
        unet, device = self.model.generator.unet, self.model.device
        features = self.model.encode_images(images.to(device)).structure_features
        maps = unet.encode(images.to(device), features, tokens.to(device))
        _, pixels, extent = unet.decode(maps, tokens.to(device), images.to(device))
        coarser = [x.to(images.device) for x in maps[1:]]
        return _Answer(coarser, unet.edge_weights(images), pixels.to(images.device), extent)

    def __deepcopy__(self, memo: dict[int, Any]) -> _AnswerOnce:
        return _AnswerOnce(self.model)
