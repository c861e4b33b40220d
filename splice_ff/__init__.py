"""Semantic appearance transfer: the layout of one image with the look of another.

The method is these files; a reader who knows the paper (Tumanyan et al., CVPR 2022) finds each equation by its name:

    vit/features.py                    keys, [CLS] tokens and self-similarity of a frozen ViT
    vit/inputs.py                      what that ViT is given to see
    losses/splice.py                   structure, appearance and identity loss, and their sum
    networks/skip_unet.py              the generator that is trained on one pair
    per_pair/optimizer.py, recipes.py  one step of that training; the published recipe and a fast one, as data
    networks/cross_attention_unet.py   the generator that is trained on many pairs
    networks/appearance_encoder.py     [CLS] tokens of all layers to the appearance tokens that it attends to
    training/losses.py                 these losses and ours over a batch of pairs, in both directions
    one_shot/pipeline.py               any pair in one forward pass

What is around them:

    images/       files and arrays to tensors and back         data/         folders, data sets and pairs of images
    one_shot/     tiles, batches, refining, model files        training/     the trainer, its settings, the teacher
    pretraining/  a backbone of one's own                      analysis/     PCA, attention, matches, inversion
    evaluation/   methods, metrics, reports                    benchmark.py  time and memory
    onnx/         painting without torch                       app/          the page that `splice-ff app` serves
    video/        videos frame by frame, and their flicker     commands/     the command line, one file a command
    networks/     a discriminator, frozen networks           utils/        files, machine, console: for all rooms
    losses/       three of ours: on style, colors, edges
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splice_ff.errors import DivergedError, InputError
    from splice_ff.images import load_image, save_image
    from splice_ff.losses import Losses, SpliceLoss
    from splice_ff.one_shot.pipeline import SpliceFF
    from splice_ff.per_pair.optimize import optimize_pair
    from splice_ff.per_pair.optimizer import PairOptimizer, PairResult
    from splice_ff.per_pair.recipes import PRESETS, Recipe
    from splice_ff.vit.features import Features, ViTFeatures
    from splice_ff.vit.spec import LossWeights

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what a Mac's GPU lacks runs on the CPU; torch names it
__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "DivergedError",
    "Features",
    "InputError",
    "LossWeights",
    "Losses",
    "PairOptimizer",
    "PairResult",
    "Recipe",
    "SpliceFF",
    "SpliceLoss",
    "ViTFeatures",
    "load_image",
    "optimize_pair",
    "save_image",
]

_MODULES = {
    "PRESETS": "per_pair.recipes",
    "DivergedError": "errors",
    "Features": "vit.features",
    "InputError": "errors",
    "LossWeights": "vit.spec",
    "Losses": "losses",
    "PairOptimizer": "per_pair.optimizer",
    "PairResult": "per_pair.optimizer",
    "Recipe": "per_pair.recipes",
    "SpliceFF": "one_shot.pipeline",
    "SpliceLoss": "losses",
    "ViTFeatures": "vit.features",
    "load_image": "images",
    "optimize_pair": "per_pair.optimize",
    "save_image": "images",
}


def __getattr__(name: str) -> Any:
    """A public name, from its module at its first use: torch and timm take seconds that `--help` should not cost."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
