"""What the commands of the one-shot mode share: options, the model, and facts for what they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import splice_ff
from splice_ff.commands._options import expanded, find_device
from splice_ff.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from splice_ff.images import LoadedImage
    from splice_ff.one_shot.pipeline import SpliceFF

DEFAULT_MODEL = "everyday"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

Model = Annotated[str, typer.Option(help="Bundled model, folder, or hub id owner/name.")]
Backbone = Annotated[
    str | None, typer.Option(help="Folder of the model's backbone. By default it is found by its name.")
]
BackboneWeights = Annotated[
    Path | None,
    typer.Option(
        help="File with the weights of the model's backbone, by default from the hub where they are not bundled.",
        callback=expanded,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Shorter side, in pixels, at which to work; by default the model's, of everyday 160. The output has the "
        "structure's size."
    ),
]
Strength = Annotated[
    float,
    typer.Option(help="Share of the change that is made: from 0, the structure image as it is, to 1, the whole look."),
]
Weight = Annotated[
    list[float] | None,
    typer.Option(help="Share of an appearance image in the mix; repeat, one for each. All alike by default."),
]
Precision = Annotated[
    str,
    typer.Option(help="Of the model's weights: fp32, or bf16 or fp16 for half the memory and nearly the same image."),
]


def check_precision(precision: str) -> None:
    """Raise InputError unless it is one."""
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision '{precision}'; use one of {', '.join(PRECISIONS)}")


def check_number_of_weights(paths: Sequence[Path], weight: Sequence[float] | None) -> None:
    """Raise InputError unless there is one for each path, or none at all."""
    if weight and len(weight) != len(paths):
        raise InputError(f"{len(weight)} --weight for {len(paths)} appearance images: give one for each, or none")


def check_look(look: Path) -> None:
    """Raise InputError unless there is such a file of a look."""
    if not look.is_file():
        raise InputError(f"{look}: no such file; name a look that `splice-ff embed` wrote")


def load_model(
    name: str, backbone: str | None, backbone_weights: Path | None, device: str | None, precision: str = "fp32"
) -> SpliceFF:
    """The model that a command was given, on its device."""
    import torch

    from splice_ff.one_shot.pipeline import SpliceFF

    found = find_device(device)
    dtype = getattr(torch, PRECISIONS[precision])
    return SpliceFF.from_pretrained(name, backbone=backbone, weights=backbone_weights, device=found, dtype=dtype)


def embed_images(model: SpliceFF, images: Sequence[LoadedImage], weight: Sequence[float] | None) -> Tensor:
    """Appearance tokens (1, M, C) of one image, or of several mixed."""
    return model.mix([model.embed(image.rgb) for image in images], weight or None)


def facts_of(
    name: str, model: SpliceFF, size: int | None, paths: Sequence[Path] = (), weight: Sequence[float] | None = None
) -> dict[str, str]:
    """What made an image or a look, for its file."""
    facts = {
        "splice_ff": splice_ff.__version__,
        "model": name,
        "model_sha256": model.fingerprint,
        "backbone": model.backbone.name,
        "size": str(size or model.config.size),
        "precision": str(model.dtype).removeprefix("torch."),
    }
    if paths:
        facts["appearance"] = ", ".join(path.name for path in paths)
    if weight:
        facts["weights"] = ", ".join(f"{w:g}" for w in weight)
    return facts
