"""Reading images into tensors and writing tensors as images, safely.

Inside the library an image is a float32 sRGB tensor `(1, 3, H, W)` in [0, 1]. Everything that files do differently
(orientation tags, color profiles, palettes, alpha, 16 bits) is settled here, at the border. `formats` needs no torch:
with it a command refuses a file before its first second is over.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from splice_ff.images.formats import MAX_PIXELS, MIN_SIDE, READABLE, SUFFIXES, check_readable, check_writable

if TYPE_CHECKING:
    from splice_ff.images.load import ImageInput, LoadedImage, check_images, is_batch, load_image, load_images
    from splice_ff.images.save import OutputType, save_image, to_output

__all__ = [
    "MAX_PIXELS",
    "MIN_SIDE",
    "READABLE",
    "SUFFIXES",
    "ImageInput",
    "LoadedImage",
    "OutputType",
    "check_images",
    "check_readable",
    "check_writable",
    "is_batch",
    "load_image",
    "load_images",
    "save_image",
    "to_output",
]

_SAVING = ("OutputType", "save_image", "to_output")


def __getattr__(name: str) -> Any:
    """What needs torch, at its first use."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = getattr(import_module(f"{__name__}.{'save' if name in _SAVING else 'load'}"), name)
    return globals()[name]
