"""`splice-ff batch`: the one-shot mode on many pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import splice_ff
from splice_ff.commands._options import Debug, Device, Folder, Quiet, Size, errors, say
from splice_ff.commands.transfer import (
    DEFAULT_MODEL,
    Backbone,
    BackboneWeights,
    Model,
    Strength,
    check_strength,
    load_model,
)
from splice_ff.errors import InputError
from splice_ff.images.formats import MIN_SIDE
from splice_ff.utils.console import progress_bar

SETTINGS = "batch.json"


def batch(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Folder of folders with structure.* and appearance.*, or .csv or .jsonl of their paths.",
            show_default=False,
        ),
    ],
    output: Folder = Path("painted"),
    model: Model = DEFAULT_MODEL,
    strength: Strength = 1.0,
    size: Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one size that are painted together.")] = 8,
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint many pairs in one pass each, as DIR/NAME.png.

    Images that are there already are kept: interrupted, the same command goes on. Pairs that cannot be painted do
    not stop the others; each gets a line, and the exit status is 2.

    Example: `splice-ff batch pairs.csv -o painted`
    """
    with errors(debug):
        from splice_ff.data.pair_list import read_pairs
        from splice_ff.one_shot.batch import paint_pairs
        from splice_ff.utils.files import check_place

        check_strength(strength)
        if size is not None and size < MIN_SIDE:
            raise InputError(f"size must be at least {MIN_SIDE} pixels, not {size}")
        listed = read_pairs(pairs)
        check_place(output / SETTINGS)
        splice = load_model(model, backbone, backbone_weights, device)
        settings = {
            "model_sha256": splice.fingerprint,
            "size": str(size or splice.config.size),
            "strength": f"{strength:g}",
        }
        _open_folder(output, settings)
        todo = [pair for pair in listed if not (output / f"{pair.name}.png").exists()]
        facts = {"splice_ff": splice_ff.__version__, "model": model, "backbone": splice.backbone.name, **settings}
        failed = 0
        try:
            with progress_bar(len(listed), "picture", quiet, len(listed) - len(todo)) as shown:
                for outcome in paint_pairs(
                    splice, todo, output, size=size, strength=strength, batch_size=batch_size, settings=facts
                ):
                    shown.update()
                    if outcome.error:
                        failed += 1
                        shown.clear()
                        say(f"error: {outcome.name}: {outcome.error}")
        except KeyboardInterrupt:
            say(f"interrupted; the finished images are in {output}, and the same command goes on from there")
            raise
        if not quiet:
            there = len(listed) - len(todo)
            say(f"{output}: {len(todo) - failed} images painted, {there} were there, {failed} failed")
        if failed:
            raise typer.Exit(2)


def _open_folder(folder: Path, settings: dict[str, str]) -> None:
    """Note what makes the images of a folder; refuse to mix them with others.

    Raises:
        InputError: the folder's images were made with another model or other settings.
    """
    from splice_ff.utils.files import atomic_write

    file = folder / SETTINGS
    if file.exists():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{file}: damaged; remove it, or choose another folder") from error
        if changed := [key for key, value in settings.items() if before.get(key) != value]:
            raise InputError(
                f"{folder}: holds images made with another {', '.join(changed).replace('model_sha256', 'model')}; "
                "choose another folder"
            )
        return
    atomic_write(file, lambda path: path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8"))
