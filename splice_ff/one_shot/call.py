"""One call of `SpliceFF` on images of any sizes: who is painted with which look, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splice_ff.errors import ImageError, InputError
from splice_ff.images import ImageInput, LoadedImage, OutputType, is_batch, load_images, to_output
from splice_ff.one_shot.checks import check_size, check_strength, check_weights
from splice_ff.one_shot.model import OneShotModel
from splice_ff.one_shot.refine import refiner
from splice_ff.one_shot.tiles import MAX_UNTILED


@dataclass(frozen=True)
class Progress:
    """Where a call of `SpliceFF` is."""

    done: int
    total: int
    """Images to paint, or refining steps of all images."""
    losses: dict[str, float]
    """Of the last refining step: total, structure, appearance, identity. Empty without refining."""
    preview: Callable[[], Tensor] | None = None
    """With refining: makes the present image, (1, 3, H, W) in [0, 1]."""


class OneShotCall:
    """Structure images of any sizes with their looks.

    Args:
        model: paints them.
        structures, appearances: as many appearances as structures, or one for all; or any number with `weights`.
        weights: shares of the appearances in one look for all; None if they are not mixed.
        size: shorter side, in pixels, at which to work.
        strength: see `SpliceFF.paint`.
        callback: see `SpliceFF.forward`.

    Raises:
        InputError: numbers of images that do not fit, or values that cannot be used.
    """

    def __init__(
        self,
        model: OneShotModel,
        structures: Sequence[LoadedImage],
        appearances: Sequence[LoadedImage],
        weights: Sequence[float] | None,
        size: int,
        strength: float,
        callback: Callable[[Progress], object] | None,
    ) -> None:
        self.size = size
        for image in structures:  # before any work
            self.size = check_size(self.size, image.rgb.shape)
        if weights is None and len(appearances) not in (1, len(structures)):
            raise InputError(
                f"{len(structures)} structure and {len(appearances)} appearance images: give one appearance image for "
                "all, one for each, or `weights` to mix them"
            )
        if weights is not None:
            check_weights(weights, len(appearances))
        self.model, self.structures, self.appearances = model, structures, appearances
        self.weights, self.callback = weights, callback
        self.strength = check_strength(strength)
        self.stopped = False

    def paint(self) -> list[Tensor | None]:
        """One-shot images (1, 3, H, W), those of one size together; None where the callback ended the call before."""
        tokens = self._appearance_tokens()
        outputs: list[Tensor | None] = [None] * len(self.structures)
        done = 0
        for places in passes([image.size for image in self.structures], self.size):
            images = [self.structures[i].rgb.to(self.model.device) for i in places]
            batch = torch.cat(images) if len(images) > 1 else images[0]  # a copy of a large image would count
            looks = tokens if len(tokens) == 1 else tokens[places]
            painted = self.model.paint(batch, looks, size=self.size, strength=self.strength)
            for i, output in zip(places, painted.split(1), strict=True):
                outputs[i] = output
            done += len(places)
            if self._is_stopped_by(Progress(done, len(outputs), {})):
                break
        return outputs

    def refine(self, steps: int, seed: int) -> list[Tensor | None]:
        """The best images (1, 3, H, W) after per-pair steps; None where the callback ended the call before."""
        if self.weights is not None or self.strength != 1:
            raise InputError("refine works towards one appearance image at full strength: no weights, no strength")
        outputs: list[Tensor | None] = [None] * len(self.structures)
        total = steps * len(outputs)
        for i, structure in enumerate(self.structures):
            appearance = self.appearances[i if len(self.appearances) > 1 else 0]
            run = refiner(self.model, structure.rgb, appearance.rgb, steps=steps, size=self.size, seed=seed)

            def on_step(run: Any, losses: Any, before: int = i * steps) -> None:
                where = Progress(before + run.step_count, total, losses.floats(), run.preview)
                if self._is_stopped_by(where):
                    run.stop()

            run.run(on_step)
            outputs[i] = run.result().image.to(self.model.device)
            if self.stopped:
                break
        return outputs

    def _appearance_tokens(self) -> Tensor:
        """(N, M, C) for N structure images, or (1, M, C) for all."""
        tokens: list[Tensor] = [torch.empty(0)] * len(self.appearances)
        for places in passes([image.size for image in self.appearances], self.model.config.vit_size):
            batch = torch.cat([self.appearances[i].rgb for i in places])
            for i, embedded in zip(places, self.model.embed(batch).split(1), strict=True):
                tokens[i] = embedded
        return torch.cat(tokens) if self.weights is None else self.model.mix(tokens, self.weights)

    def _is_stopped_by(self, where: Progress) -> bool:
        self.stopped = self.callback is not None and self.callback(where) is False
        return self.stopped


def read_images(source: ImageInput | Sequence[ImageInput], role: str) -> list[LoadedImage]:
    """What `splice_ff.images.load_images` reads; its errors name the role."""
    try:
        return load_images(source)
    except ImageError as error:
        raise ImageError(f"{role}: {error}") from error


def in_the_form_of(
    source: ImageInput | Sequence[ImageInput],
    structures: Sequence[LoadedImage],
    outputs: Sequence[Tensor | None],
    output_type: OutputType,
) -> Any:
    """Outputs as a single image, a list, or a tensor or array of four dimensions, whichever the structures came in.

    Args:
        source: the structure images as they were given.
        structures: as they were read; their alpha is given back.
        outputs: (1, 3, H, W) each, or None where none was made.
        output_type: see `splice_ff.images.to_output`.
    """
    alphas = [image.alpha for image in structures]
    is_stacked = isinstance(source, (np.ndarray, Tensor)) and source.ndim == 4
    if is_stacked and any(alpha is not None for alpha in alphas):  # as many channels for all
        alphas = [torch.ones_like(i.rgb[:, :1]) if a is None else a for i, a in zip(structures, alphas, strict=True)]
    made = [
        None if output is None else to_output(output, alpha, output_type)
        for output, alpha in zip(outputs, alphas, strict=True)
    ]
    if not is_batch(source):
        return made[0]
    if not is_stacked or output_type == "pil" or any(image is None for image in made):
        return made
    return torch.stack(made) if output_type == "pt" else np.stack(made)  # type: ignore[arg-type]


def passes(sizes: Sequence[tuple[int, int]], working_size: int) -> Iterator[list[int]]:
    """Places of images that go through together: those of one size (H, W), so many that a pass fits in memory."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    for (h, w), places in groups.items():
        count = images_a_pass(h, w, working_size)
        for start in range(0, len(places), count):
            yield places[start : start + count]


def images_a_pass(h: int, w: int, working_size: int) -> int:
    """How many images of h x w fit in memory together: no more pixels, read or worked on, than of one untiled image."""
    pixels = max(h * w, working_size * working_size * max(h, w) / min(h, w))
    return max(1, int(MAX_UNTILED / pixels))
