"""`splice-ff transfer`: the one-shot mode."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splice_ff.commands._one_shot import (
    DEFAULT_MODEL,
    Backbone,
    BackboneWeights,
    Model,
    Precision,
    Size,
    Strength,
    Weight,
    check_look,
    check_number_of_weights,
    check_precision,
    embed_images,
    facts_of,
    load_model,
)
from splice_ff.commands._options import (
    Debug,
    Device,
    Output,
    Quiet,
    Structure,
    check_backbones,
    errors,
    expanded,
    load,
    say,
)
from splice_ff.commands._runs import end_pair, take_steps, taken_losses, write_best
from splice_ff.errors import InputError

if TYPE_CHECKING:
    from splice_ff.images import LoadedImage
    from splice_ff.one_shot.pipeline import SpliceFF


def transfer(
    structure: Structure,
    appearance: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image whose look is taken; several are mixed. None with --look.",
            show_default=False,
            callback=expanded,
        ),
    ] = None,
    output: Output = Path("out.png"),
    model: Model = DEFAULT_MODEL,
    look: Annotated[
        Path | None, typer.Option(help="Look written by `splice-ff embed`, for APPEARANCE.", callback=expanded)
    ] = None,
    weight: Weight = None,
    strength: Strength = 1.0,
    size: Size = None,
    precision: Precision = "fp32",
    runtime: Annotated[
        str,
        typer.Option(
            envvar="SPLICE_FF_RUNTIME",
            help="onnx starts in a second, torch can do more; auto takes onnx once the model is exported, which "
            "happens in the background after the first image.",
        ),
    ] = "auto",
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="Per-pair steps from the one-shot image on, at full strength; 100 take a while. Without --size, they "
            "work at 1.4 times the model's.",
        ),
    ] = 0,
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint an image with the look of another in one forward pass: well under a second, and start-up.

    Several appearance images are mixed: `splice-ff transfer cat.jpg raccoon.jpg cat.jpg --weight 2 --weight 1`

    Example: `splice-ff transfer cat.jpg raccoon.jpg -o cat-as-raccoon.png`
    """
    with errors(debug):
        from splice_ff.images import check_readable, check_writable
        from splice_ff.onnx.cache import export_in_background, find_export
        from splice_ff.utils.files import check_not_input

        start, paths = time.perf_counter(), appearance or []
        _check_arguments(paths, look, weight, strength, refine, precision)
        check_writable(output, check_readable(structure))
        check_not_input(output, [structure, *paths])
        for path in paths:
            check_readable(path)
        if look:
            check_look(look)
        check_backbones([backbone], backbone_weights)
        can_onnx = _check_runtime(runtime, size, look, precision, refine, backbone, backbone_weights, device)
        exported = find_export(model) if can_onnx else None
        if exported or runtime == "onnx":
            exported = exported or Path(model).expanduser()
            _transfer_without_torch(exported, structure, paths, output, model, weight, strength, size, quiet)
            if not quiet:
                say(_painted(output, start))
            return

        from splice_ff.images import save_image
        from splice_ff.one_shot.tokens_file import load_look

        image = load(structure, quiet)
        others = [load(path, quiet) for path in paths]
        splice = load_model(model, backbone, backbone_weights, device, precision)
        facts = facts_of(model, splice, size, paths, weight) | {
            "structure": structure.name,
            "strength": f"{strength:g}",
        }
        if look:
            tokens, look_facts = load_look(look, splice)
            facts |= {k: v for k, v in look_facts.items() if k in ("appearance", "weights")} | {"look": look.name}
        else:
            tokens = embed_images(splice, others, weight)
        if refine:
            _refine(splice, image, others[0], output, refine, size, facts, quiet)
            return
        made = splice.paint(image.rgb, tokens, size=size, strength=strength)
        save_image(output, made, alpha=image.alpha, settings=facts)
        if not quiet:
            say(_painted(output, start))
        if can_onnx and export_in_background(model) and not quiet:
            say("note: exporting the model once, in the background; in a few minutes `transfer` starts without torch")


def _painted(output: Path, start: float) -> str:
    return f"{output}: painted in {time.perf_counter() - start:.1f} s; --refine 100 comes nearer to the look"


def _check_runtime(runtime: str, size: int | None, *for_torch: object) -> bool:
    """Whether onnxruntime may paint; InputError if it must but cannot do what was asked for."""
    if runtime not in ("auto", "torch", "onnx"):
        raise InputError(f"unknown runtime '{runtime}'; use auto, torch or onnx")
    is_plain = all(value in (None, 0, "fp32") for value in for_torch)
    if runtime == "onnx" and not is_plain:
        raise InputError(
            "--runtime onnx paints in one pass only: no --look, --precision, --refine, --backbone, --backbone-weights "
            "or --device"
        )
    fits = size is None or size <= 1024  # beyond, torch paints in tiles
    return runtime == "onnx" or (runtime == "auto" and is_plain and fits and find_spec("onnxruntime") is not None)


def _transfer_without_torch(
    exported: Path,
    structure: Path,
    appearances: list[Path],
    output: Path,
    model: str,
    weight: list[float] | None,
    strength: float,
    size: int | None,
    quiet: bool,
) -> None:
    from splice_ff import __version__
    from splice_ff.images.decode import decode_image
    from splice_ff.images.encode import write_image
    from splice_ff.onnx.runner import OnnxSpliceFF

    runner = OnnxSpliceFF(exported)
    images = [decode_image(path) for path in (structure, *appearances)]
    for path, image in zip((structure, *appearances), images, strict=True):
        for note in () if quiet else image.notes:
            say(f"note: {path}: {note}")
    made = runner(*images, weights=weight, size=size, strength=strength)
    facts = {
        "splice_ff": __version__,
        "model": model,
        "model_sha256": runner.card["model_sha256"],
        "backbone": runner.card["backbone"]["name"],
        "runtime": "onnx",
        "size": str(size or runner.card["size"]),
        "strength": f"{strength:g}",
        "structure": structure.name,
        "appearance": ", ".join(path.name for path in appearances),
        **({"weights": ", ".join(f"{share:g}" for share in weight)} if weight else {}),
    }
    write_image(output.expanduser(), made, facts)


def _check_arguments(
    paths: list[Path], look: Path | None, weight: list[float] | None, strength: float, refine: int, precision: str
) -> None:
    from splice_ff.images import SUFFIXES
    from splice_ff.one_shot.checks import check_strength

    if bool(paths) == bool(look):
        raise InputError("give appearance images, or --look; " + ("not both" if look else "there is neither"))
    if look and look.suffix.lower() in SUFFIXES:
        raise InputError(f"{look}: an image, and no look; give it as APPEARANCE, or `splice-ff embed` it first")
    check_number_of_weights(paths, weight)
    check_precision(precision)
    check_strength(strength)
    if refine and (len(paths) != 1 or strength != 1):
        raise InputError("--refine works towards one appearance image at full strength: no mix, --look or --strength")


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
    from splice_ff.one_shot.refine import refiner

    run = refiner(model, structure.rgb, appearance.rgb, steps=steps, size=size)
    failure = take_steps(run, lambda losses: taken_losses(run, losses.floats()), quiet)
    taken = {"refine": str(steps), "size": str(run.recipe.size)}
    result = write_best(run, failure, output, structure, facts | taken)
    end_pair(run, failure, result, output, quiet)
