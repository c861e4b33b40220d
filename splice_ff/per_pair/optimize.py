"""Per-pair optimization in one call: paths in, image out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splice_ff.images import load_image
from splice_ff.losses import Losses
from splice_ff.per_pair.optimizer import PairOptimizer, PairResult, working_size
from splice_ff.per_pair.recipes import Recipe, check_image_size, make_recipe
from splice_ff.utils.machine import default_device
from splice_ff.utils.resize import to_full_size
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.weights import load_backbone, load_default_backbone


def optimize_pair(
    structure: Any,
    appearance: Any,
    *,
    preset: str = "fast",
    backbone: str | ViTFeatures | None = None,
    weights: str | Path | None = None,
    steps: int | None = None,
    size: int | None = None,
    generator: str | None = None,
    precision: str | None = None,
    seed: int = 0,
    compile: bool = False,
    device: torch.device | str | None = None,
    on_step: Callable[[PairOptimizer, Losses], object] | None = None,
) -> PairResult:
    """Paint the structure image with the look of the appearance image.

    Args:
        structure, appearance: paths, PIL images, arrays or tensors; see `splice_ff.images.load_image`.
        preset: "fast" or "paper".
        backbone: name of the frozen ViT, or a loaded one; the preset's by default, or the bundled stand-in (with
            a warning) where that one's weights are neither cached nor reachable.
        weights: file or folder with the backbone's weights.
        steps, size, generator, precision: replace the preset's.
        seed: two runs with one seed on one machine give the same image.
        compile: use torch.compile; pays off in long runs on a GPU.
        device: "cuda" if there is one, else "cpu", by default.
        on_step: called after every step, with the optimizer and the step's losses; it may call the optimizer's `stop`,
            which ends the run with the best image so far.

    Returns:
        The best image of the run, with its losses and the trained generator.

    Raises:
        InputError: an input cannot be used; the message says which and why.
        DivergedError: the losses became NaN or infinite.
    """
    recipe = make_recipe(preset, steps=steps, size=size, generator=generator, precision=precision)
    if not isinstance(backbone, ViTFeatures):
        backbone, notice = choose_backbone(recipe, backbone, weights)
        if notice:
            warnings.warn(notice, stacklevel=2)
    optimizer = PairOptimizer(
        load_image(structure).rgb,
        load_image(appearance).rgb,
        backbone,
        recipe,
        seed=seed,
        compile=compile,
        device=device or default_device(),
    )
    optimizer.run(on_step)
    return optimizer.result()


@torch.no_grad()
def apply_generator(generator: nn.Module, image: Tensor, size: int | None) -> Tensor:
    """Run a trained generator on (1, 3, H, W) in [0, 1] at a shorter side of `size`; the result has H x W.

    Raises:
        InputError: too few or too many pixels at that size.
    """
    check_image_size(image.shape[-2], image.shape[-1], size, "image")
    image = image.to(next(generator.parameters()).device)
    working = working_size(image, size)
    return to_full_size(generator(working), working, image).cpu()


def choose_backbone(recipe: Recipe, name: str | None, weights: str | Path | None) -> tuple[ViTFeatures, str | None]:
    """The backbone asked for, or the recipe's, or its stand-in; and a notice to show if it is the stand-in."""
    if name or weights:
        return load_backbone(name or recipe.backbone, weights), None
    return load_default_backbone(recipe.backbone)
