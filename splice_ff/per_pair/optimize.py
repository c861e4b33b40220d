"""Per-pair optimization in one call: paths in, image out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splice_ff.images.load import ImageInput, load_image
from splice_ff.images.save import OutputType, check_output_type, to_output
from splice_ff.losses import Losses
from splice_ff.per_pair.optimizer import PairOptimizer, PairResult, working_size
from splice_ff.per_pair.recipes import Recipe, check_image_size, make_recipe
from splice_ff.utils.machine import default_device, plain_torch
from splice_ff.utils.resize import to_full_size
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.weights import load_backbone, load_default_backbone


@plain_torch()
def optimize_pair(
    structure: ImageInput,
    appearance: ImageInput,
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
    output_type: OutputType = "pil",
    on_step: Callable[[PairOptimizer, Losses], object] | None = None,
) -> PairResult[Any]:
    """Paint the structure image with the look of the appearance image, by training a generator on the pair.

    Examples:
        >>> from splice_ff import optimize_pair
        >>> result = optimize_pair("examples/raccoon.jpg", "examples/cat.jpg", backbone="vit_mini", size=64, steps=1)
        >>> result.image.save("raccoon-as-cat.png")

    Args:
        structure, appearance: paths, PIL images, arrays or tensors; see `splice_ff.images.load_image`.
        preset: "fast" or "paper".
        backbone: name of the frozen ViT, or a loaded one; the preset's by default, or the bundled stand-in (with
            a warning) where that one's weights are neither cached nor reachable.
        weights: file or folder with the backbone's weights.
        steps, size, generator, precision: replace the preset's.
        seed: two runs with one seed on one machine give the same image.
        compile: use torch.compile; pays off in long runs on a GPU.
        device: a GPU if there is one, else "cpu", by default.
        output_type: of the result's `image`. "pil": a PIL image. "np": a float32 array (H, W, 3) in [0, 1]. "pt": a
            tensor (1, 3, H, W) in [0, 1]. With a fourth channel, alpha, where the structure image has it.
        on_step: called after every step, with the optimizer and the step's losses; it may call the optimizer's `stop`,
            which ends the run with the best image so far.

    Returns:
        The best image of the run, of the structure image's size, with its losses and the trained generator.

    Raises:
        InputError: an input cannot be used; the message says which and why.
        DivergedError: the losses became NaN or infinite.
    """
    check_output_type(output_type)
    recipe = make_recipe(preset, steps=steps, size=size, generator=generator, precision=precision)
    images = [load_image(source) for source in (structure, appearance)]
    if not isinstance(backbone, ViTFeatures):
        backbone, notice = choose_backbone(recipe, backbone, weights)
        if notice:
            warnings.warn(notice, stacklevel=3)
    where = torch.device(device) if device else default_device()
    optimizer = PairOptimizer(images[0].rgb, images[1].rgb, backbone, recipe, seed=seed, compile=compile, device=where)
    optimizer.run(on_step)
    result = optimizer.result()
    image = to_output(result.image, images[0].alpha, output_type)
    return replace(result, image=image[None] if output_type == "pt" else image)


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
