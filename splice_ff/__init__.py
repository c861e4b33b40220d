"""Semantic appearance transfer: the layout of one image with the look of another."""

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
    "DivergedError": "per_pair.optimizer",
    "Features": "vit.features",
    "InputError": "errors",
    "LossWeights": "losses",
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
