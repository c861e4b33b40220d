"""A ComfyUI node for splice-ff: copy this folder into `ComfyUI/custom_nodes/`; see docs/comfyui.md."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from splice_ff import SpliceFF
from splice_ff.utils.machine import default_device


class SpliceFFTransfer:
    """The layout of one image with the look of another; see `splice_ff.SpliceFF.forward`."""

    CATEGORY = "image/style"
    DESCRIPTION = "Paint the structure image with the look of the appearance image, part by matching part."
    FUNCTION = "transfer"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple[Any, ...]]]:
        """The node's sockets and fields."""
        size = (
            "Shorter side, in pixels, at which to work; 0 is the model's own; for refining, 1.4 times that. The output "
            "has the structure's size."
        )
        return {
            "required": {
                "structure": ("IMAGE", {"tooltip": "Its layout is kept. Several are painted one by one."}),
                "appearance": (
                    "IMAGE",
                    {"tooltip": "Its look is taken: one for all, or one for each structure image."},
                ),
                "model": (
                    "STRING",
                    {"default": "everyday", "tooltip": "Bundled model, folder, or hub id owner/name."},
                ),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}),
                "size": ("INT", {"default": 0, "min": 0, "max": 4096, "step": 16, "tooltip": size}),
                "refine": (
                    "INT",
                    {"default": 0, "min": 0, "max": 2000, "tooltip": "Per-pair steps; 100 take a while."},
                ),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1, "tooltip": "Of refining."}),
            }
        }

    def transfer(
        self,
        structure: Tensor,
        appearance: Tensor,
        model: str,
        strength: float,
        size: int,
        refine: int,
        seed: int,
    ) -> tuple[Tensor]:
        """Paint.

        Args:
            structure, appearance: (B, H, W, 3) in [0, 1], as ComfyUI holds images.
            model, strength, size, refine, seed: see `INPUT_TYPES`.

        Returns:
            The images, (B, H, W, 3) float32 in [0, 1] on the CPU.

        Raises:
            splice_ff.InputError: what the model cannot use; the message says what is wanted.
        """
        splice = load(model, str(device()))
        painted = splice(
            structure.movedim(-1, 1),
            appearance.movedim(-1, 1),
            strength=strength,
            size=size or None,
            refine=refine,
            seed=seed,
            output_type="pt",
            callback=progress(),
        )
        return (painted.movedim(1, -1).float().cpu(),)


@lru_cache(maxsize=2)
def load(name: str, where: str) -> SpliceFF:
    """The model, kept for the next run of the workflow."""
    return SpliceFF.from_pretrained(name, device=where)


def device() -> torch.device:
    """Where ComfyUI computes; outside of it, where splice-ff does."""
    if "comfy" not in sys.modules:
        return default_device()
    from comfy.model_management import get_torch_device

    return get_torch_device()


def progress() -> Callable[[Any], None] | None:
    """ComfyUI's progress bar and its Cancel button, for `SpliceFF`'s callback; none outside of it."""
    if "comfy" not in sys.modules:
        return None
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    bar = ProgressBar(1)

    def show(where: Any) -> None:
        bar.update_absolute(where.done, where.total)
        throw_exception_if_processing_interrupted()

    return show


NODE_CLASS_MAPPINGS = {"SpliceFFTransfer": SpliceFFTransfer}
NODE_DISPLAY_NAME_MAPPINGS = {"SpliceFFTransfer": "Appearance transfer (splice-ff)"}
