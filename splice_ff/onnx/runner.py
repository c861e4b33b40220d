"""One-shot transfer on numpy, Pillow and onnxruntime alone: no torch, so that it starts in about a second.

    model = OnnxSpliceFF("exported/")
    model("raccoon.jpg", "cat.jpg").save("out.png")

It computes what `splice_ff.SpliceFF` does, on the files that `splice-ff export` writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splice_ff.errors import CheckpointError, InputError, first_line
from splice_ff.images.decode import DecodedImage, decode_image
from splice_ff.one_shot.checks import check_size, check_strength, check_weights
from splice_ff.onnx.files import CARD, FORMATS
from splice_ff.utils.extras import need
from splice_ff.vit.inputs import MAX_ASPECT

Array = NDArray[np.float32]
BAND = 2**18
"""Pixels that are sliced at once."""
MARGIN = 0.02
"""As in `splice_ff.networks.bilateral_grid`."""
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


class OnnxSpliceFF:
    """An exported one-shot model.

    Args:
        folder: with model.json and the graphs.
        threads: of onnxruntime; as many as there are cores if None.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format.
        InputError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None) -> None:
        need("onnxruntime", extra="onnx")
        import onnxruntime

        folder = Path(folder)
        self.card = _read_card(folder / CARD)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # the extended optimizations take twice as long as an image that they speed up by a hundredth
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._sessions: dict[str, Any] = {}
        for name in FORMATS[self.card["format"]]:
            file = folder / f"{name}.onnx"
            if not file.is_file():
                raise CheckpointError(f"{file}: no such file; export the model again")
            try:
                self._sessions[name] = onnxruntime.InferenceSession(
                    file, options, providers=onnxruntime.get_available_providers()
                )
            except Exception as error:  # onnxruntime has a class of its own for each of its states
                raise CheckpointError(f"{file}: damaged ({first_line(error)}); export the model again") from error

    def embed(self, appearance: Array) -> Array:
        """Appearance tokens (1, M, C) of an image (1, 3, H, W) in [0, 1]."""
        return self._run("encode", vit_input=self._vit_input(appearance))[0]

    def paint(self, structure: Array, tokens: Array, size: int | None = None, strength: float = 1.0) -> Array:
        """The structure image (1, 3, H, W) in [0, 1] with the look of `tokens` (1, M, C), at its own size.

        Args:
            structure: float32.
            tokens: from `embed`.
            size: shorter side, in pixels, at which the network works; the model's default if None.
            strength: share of the change that is made: 0 leaves the structure image as it is, 1 is all of it.

        Raises:
            InputError: tokens of another shape, a size that is too small or makes too many pixels, or a strength that
                is not in [0, 1].
        """
        strength = check_strength(strength)
        if list(tokens.shape) != [1, *self.card["tokens"]]:
            raise InputError(f"appearance tokens of shape {tokens.shape}; this model's are (1, *{self.card['tokens']})")
        size = check_size(self.card["size"] if size is None else size, structure.shape)
        full_size = structure.shape[-2:]
        working = _resize_shorter_side(structure, size)
        vit_input = self._vit_input(working)
        h, w = working.shape[-2:]
        padded = _pad(working, self.card["stride"])
        share = np.array(strength, np.float32)
        painted = self._run("paint", structure=padded, vit_input=vit_input, tokens=tokens, strength=share)
        if "cell" in self.card:
            return self._paint_by_grid(structure, working, *painted)
        output = painted[0][..., :h, :w]
        if (h, w) == full_size:
            return output
        if w > full_size[1]:
            return _at_smaller_size(output, working, structure)
        return self._run("upsample", output=output, structure=working, full=structure)[0]

    def _paint_by_grid(self, structure: Array, working: Array, pixels: Array, grid: Array) -> Array:
        """Change an image by a bilateral grid of maps; as `recolor_at_full_size` in splice_ff does."""
        h, w = working.shape[-2:]
        pixels, extent = pixels[..., :h, :w], [side / self.card["cell"] for side in (h, w)]
        if w > structure.shape[-1]:
            return _at_smaller_size(self._slice(working, pixels, grid, extent), working, structure)
        if w < structure.shape[-1]:
            (pixels,) = self._run("upsample", output=pixels, structure=working, full=structure)
        return self._slice(structure, pixels, grid, extent)

    def _slice(self, image: Array, pixels: Array, grid: Array, extent: Sequence[float]) -> Array:
        """Change an image a few rows at a time, `extent` cells of the grid high and wide."""
        rows, columns = (
            (np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / n)
            for n, cells in zip(image.shape[-2:], extent, strict=True)
        )
        step = max(1, BAND // image.shape[-1])
        bands = (slice(top, top + step) for top in range(0, len(rows), step))
        painted = [
            self._run(
                "slice", structure=image[..., band, :], pixels=pixels[..., band, :], grid=grid, rows=rows[band],
                columns=columns,
            )[0]
            for band in bands
        ]  # fmt: skip
        return np.concatenate(painted, 2)

    def __call__(
        self,
        structure: Any,
        *appearances: Any,
        weights: Sequence[float] | None = None,
        size: int | None = None,
        strength: float = 1.0,
    ) -> Image.Image:
        """Paint the structure image with the look of the appearance image, or of several mixed.

        Args:
            structure, appearances: paths, PIL images, arrays (H, W, 3) of uint8 or of float in [0, 1], or what
                `splice_ff.images.decode.decode_image` made of them.
            weights: of the appearance images in the mix, not negative; all alike if None.
            size, strength: as for `paint`.

        Returns:
            A PIL image of the structure image's size, with its alpha.

        Raises:
            InputError: an image, weights or a size that cannot be used.
        """
        shares = check_weights([1.0] * len(appearances) if weights is None else weights, len(appearances))
        image, *others = (
            given if isinstance(given, DecodedImage) else decode_image(given) for given in (structure, *appearances)
        )
        looks = [self.embed(other.rgb[None]) for other in others]
        tokens = np.tensordot(np.asarray(shares, np.float32), np.stack(looks), 1)
        output = self.paint(image.rgb[None], tokens, size, strength)[0]
        if image.alpha is not None:
            output = np.concatenate([output, image.alpha])
        return Image.fromarray(np.rint(output.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))

    def _run(self, graph: str, **inputs: Array) -> list[Array]:
        outputs: list[Array] = self._sessions[graph].run(None, inputs)
        return outputs

    def _vit_input(self, image: Array) -> Array:
        """An image as the ViT sees it: whole patches, the rule of `splice_ff.vit.inputs.ViTInput`."""
        size, patch, sides = self.card["vit_size"], self.card["backbone"]["patch"], image.shape[-2:]
        factor = min(size / min(sides), MAX_ASPECT * size / max(sides))
        return _resize(image, [max(2, round(side * factor / patch)) * patch for side in sides], BILINEAR)


def _at_smaller_size(painted: Array, working: Array, structure: Array) -> Array:
    """Change a small structure image as its enlarged copy was; as `recolor_at_full_size` in splice_ff does."""
    change = _resize(_logits(painted) - _logits(working), structure.shape[-2:], BICUBIC)
    colors = 1 / (1 + np.exp(-_logits(structure) - change))
    return ((colors - MARGIN) / (1 - 2 * MARGIN)).clip(0, 1)


def _logits(image: Array) -> Array:
    inside = image * (1 - 2 * MARGIN) + MARGIN
    return np.log(inside / (1 - inside))


def _read_card(file: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if card["format"] not in FORMATS:
            known = " or ".join(f"'{name}'" for name in FORMATS)
            raise CheckpointError(f"{file}: format '{card['format']}', expected {known}; export the model again")
        return card
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read; name a folder that `splice-ff export MODEL -o FOLDER` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: damaged ({first_line(error)}); export the model again") from error


def _resize_shorter_side(image: Array, size: int) -> Array:
    """(1, 3, H, W) with a shorter side of `size`, the longer as torchvision rounds it."""
    h, w = image.shape[-2:]
    if min(h, w) == size:
        return image
    sides = [size, int(size * w / h)] if h <= w else [int(size * h / w), size]
    return _resize(image, sides, BICUBIC).clip(0, 1)


def _resize(image: Array, sides: Any, how: Image.Resampling) -> Array:
    """(1, 3, H, W) to other sides; Pillow's filters widen when they reduce: that is antialiasing."""
    if list(image.shape[-2:]) == list(sides):
        return image
    planes = [np.asarray(Image.fromarray(plane).resize((sides[1], sides[0]), how)) for plane in image[0]]
    return np.stack(planes)[None]


def _pad(image: Array, stride: int) -> Array:
    """(1, 3, H, W), padded below and to the right to multiples of the stride: by reflection, and what lies beyond one
    image's width of it repeats the edge."""
    for axis in (2, 3):
        side = image.shape[axis]
        missing = -side % stride
        for mode, most in (("reflect", side - 1), ("edge", missing)):
            width = [(0, 0)] * 4
            width[axis] = (0, min(missing, most))
            image = np.pad(image, width, mode=mode)  # type: ignore[call-overload]
            missing -= width[axis][1]
    return np.ascontiguousarray(image)
