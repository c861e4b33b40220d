"""Semantic appearance transfer: the layout of one picture with the look of another."""

from splice_ff.backbone import Features, ViTFeatures
from splice_ff.errors import InputError
from splice_ff.images import load_image, save_image
from splice_ff.losses import Losses, LossWeights, SpliceLoss
from splice_ff.pair import optimize_pair
from splice_ff.pair_optimizer import DivergedError, PairOptimizer, PairResult
from splice_ff.pipeline import SpliceFF
from splice_ff.presets import PRESETS, Recipe

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
