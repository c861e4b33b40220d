"""`splice-ff transfer` and `embed`: the one-shot mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import splice_ff
from splice_ff.commands._options import Debug, Device, Output, Quiet, Size, Structure, errors, find_device, load, say
from splice_ff.commands._runs import end_pair, take_steps, write_best
from splice_ff.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from splice_ff.images import LoadedImage
    from splice_ff.one_shot.pipeline import SpliceFF

DEFAULT_MODEL = "pets-tiny"

Model = Annotated[str, typer.Option(help="Bundled model, folder, or hub id owner/name.")]
Backbone = Annotated[
    str | None, typer.Option(help="Folder of the model's backbone, where it cannot be found by its name.")
]
BackboneWeights = Annotated[
    Path | None, typer.Option(help="File with the weights of the model's backbone, where the hub cannot be reached.")
]
Strength = Annotated[float, typer.Option(help="From 0, the structure image's own look, to 1, the appearance image's.")]
Weight = Annotated[
    list[float] | None,
    typer.Option(help="Share of an appearance image in the mix; repeat, one for each. All alike by default."),
]


def transfer(
    structure: Structure,
    appearance: Annotated[
        list[Path] | None,
        typer.Argument(help="Image whose look is taken; several are mixed. None with --look.", show_default=False),
    ] = None,
    output: Output = Path("out.png"),
    model: Model = DEFAULT_MODEL,
    look: Annotated[Path | None, typer.Option(help="Look written by `splice-ff embed`, for APPEARANCE.")] = None,
    weight: Weight = None,
    strength: Strength = 1.0,
    size: Size = None,
    refine: Annotated[
        int, typer.Option(min=0, help="Per-pair steps that start from the one-shot image; 100 take a while.")
    ] = 0,
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint an image with the look of another in one forward pass: well under a second, and start-up.

    Several appearance images are mixed: `splice-ff transfer cat.jpg tiger.jpg fox.jpg --weight 2 --weight 1`

    Example: `splice-ff transfer cat.jpg tiger.jpg -o tiger-cat.png`
    """
    with errors(debug):
        from splice_ff.images import check_writable, save_image
        from splice_ff.one_shot.tokens_file import load_look

        paths = appearance or []
        _check_arguments(paths, look, weight, strength, refine)
        check_writable(output)
        picture = load(structure, quiet)
        others = [load(path, quiet) for path in paths]
        splice = load_model(model, backbone, backbone_weights, device)
        facts = _facts(model, splice, size, paths, weight) | {"structure": structure.name, "strength": f"{strength:g}"}
        if look:
            tokens, look_facts = load_look(look, splice)
            facts |= {k: v for k, v in look_facts.items() if k in ("appearance", "weights")} | {"look": look.name}
        else:
            if not quiet:
                _warn_of_weak_matches(splice, picture, paths, others)
            tokens = _embed(splice, others, weight)
        if refine:
            _refine(splice, picture, others[0], output, refine, size, facts, quiet)
            return
        made = splice.paint(picture.rgb, tokens, size=size, strength=strength)
        save_image(output, made, alpha=picture.alpha, settings=facts)
        if not quiet:
            say(str(output))


def embed(
    appearance: Annotated[
        list[Path], typer.Argument(help="Image whose look is kept; several are mixed.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (.safetensors).")] = Path(
        "look.safetensors"
    ),
    model: Model = DEFAULT_MODEL,
    weight: Weight = None,
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Keep the look of an image, for `splice-ff transfer --look`. It fits only the model that made it.

    Example: `splice-ff embed tiger.jpg -o tiger.safetensors`
    """
    with errors(debug):
        from splice_ff.one_shot.tokens_file import save_look
        from splice_ff.utils.files import check_place

        _check_weights(appearance, weight)
        check_place(output)
        images = [load(path, quiet) for path in appearance]
        splice = load_model(model, backbone, backbone_weights, device)
        save_look(output, splice, _embed(splice, images, weight), _facts(model, splice, None, appearance, weight))
        if not quiet:
            say(str(output))


def load_model(name: str, backbone: str | None, backbone_weights: Path | None, device: str | None) -> SpliceFF:
    """The model that a command was given, on its device."""
    from splice_ff.one_shot.pipeline import SpliceFF

    found = find_device(device)
    return SpliceFF.from_pretrained(name, backbone=backbone, weights=backbone_weights).to(found)


def _check_arguments(
    paths: list[Path], look: Path | None, weight: list[float] | None, strength: float, refine: int
) -> None:
    from splice_ff.images import SUFFIXES

    if bool(paths) == bool(look):
        raise InputError("give appearance images, or --look; " + ("not both" if look else "there is neither"))
    if look and look.suffix.lower() in SUFFIXES:
        raise InputError(f"{look}: an image, and no look; give it as APPEARANCE, or `splice-ff embed` it first")
    _check_weights(paths, weight)
    check_strength(strength)
    if refine and (len(paths) != 1 or strength != 1):
        raise InputError("--refine works towards one appearance image at full strength: no mix, --look or --strength")


def check_strength(strength: float) -> None:
    """Raise InputError unless it is one."""
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be between 0 and 1, not {strength:g}")


def _check_weights(paths: list[Path], weight: list[float] | None) -> None:
    if weight and len(weight) != len(paths):
        raise InputError(f"{len(weight)} --weight for {len(paths)} appearance images: give one for each, or none")


def _embed(model: SpliceFF, images: list[LoadedImage], weight: list[float] | None) -> Tensor:
    return model.mix([model.embed(image.rgb) for image in images], weight or None)


def _facts(
    name: str, model: SpliceFF, size: int | None, paths: list[Path], weight: list[float] | None
) -> dict[str, str]:
    facts = {
        "splice_ff": splice_ff.__version__,
        "model": name,
        "model_sha256": model.fingerprint,
        "backbone": model.backbone.name,
        "size": str(size or model.config.size),
    }
    if paths:
        facts["appearance"] = ", ".join(path.name for path in paths)
    if weight:
        facts["weights"] = ", ".join(f"{w:g}" for w in weight)
    return facts


def _warn_of_weak_matches(
    model: SpliceFF, structure: LoadedImage, paths: list[Path], appearances: list[LoadedImage]
) -> None:
    from splice_ff.analysis.correspondence import match_strength

    for path, image in zip(paths, appearances, strict=True):
        strength = match_strength(model.backbone, structure.rgb, image.rgb)
        if strength.is_weak:
            say(f"note: {path}: {strength.text}")


def _refine(
    model: SpliceFF,
    structure: LoadedImage,
    appearance: LoadedImage,
    output: Path,
    steps: int,
    size: int | None,
    facts: dict[str, str],
    quiet: bool,
) -> None:
    """Take per-pair steps and write the best image, also when they are interrupted or diverge."""
    from splice_ff.losses import Losses
    from splice_ff.one_shot.refine import refiner

    run = refiner(model, structure.rgb, appearance.rgb, steps=steps, size=size)
    failure = take_steps(run, Losses.floats, quiet)
    result = write_best(run, failure, output, structure, facts | {"refine": str(steps)})
    end_pair(run, failure, result, output, quiet)
