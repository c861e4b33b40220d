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
from splice_ff.onnx.files import CARD, FORMAT, GRAPHS
from splice_ff.utils.extras import need

Array = NDArray[np.float32]


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
        for name in GRAPHS:
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
        return self._run("encode", image=appearance, size=np.zeros(1, np.int64))[0]

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
        sides = np.array([size])
        _, features = self._run("encode", image=structure, size=sides)
        share = np.array(strength, np.float32)
        painted = self._run("paint", structure=structure, size=sides, features=features, tokens=tokens, strength=share)
        return painted[0]

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


def _read_card(file: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise CheckpointError(f"{file}: format '{card['format']}', expected '{FORMAT}'; export the model again")
        return card
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read; name a folder that `splice-ff export MODEL -o FOLDER` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: damaged ({first_line(error)}); export the model again") from error
