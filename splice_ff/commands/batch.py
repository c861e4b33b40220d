"""`splice-ff batch`: the one-shot mode on many images."""

from __future__ import annotations

from collections.abc import Sequence
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
    check_look,
    check_precision,
    facts_of,
    load_model,
)
from splice_ff.commands._options import Debug, Device, Folder, Quiet, check_backbones, errors, expanded, say
from splice_ff.errors import InputError
from splice_ff.utils.console import progress_bar
from splice_ff.utils.files import file_digest

if TYPE_CHECKING:
    from splice_ff.data.pair_list import PairFiles

RECORD = "batch.json"
MAX_BATCH = 1024


def batch(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="A list of pairs: .csv, .jsonl, or a folder of folders with structure.* and appearance.*. With --look "
            "or --structure: images, folders of images, patterns in quotes, or .txt files with a path a line.",
            show_default=False,
            callback=expanded,
        ),
    ],
    output: Folder = Path("painted"),
    look: Annotated[
        Path | None,
        typer.Option(help="Paint all inputs with this look: an image, or what `embed` wrote.", callback=expanded),
    ] = None,
    structure: Annotated[
        Path | None, typer.Option(help="Paint this image with the looks of all inputs.", callback=expanded)
    ] = None,
    model: Model = DEFAULT_MODEL,
    strength: Strength = 1.0,
    size: Size = None,
    precision: Precision = "fp32",
    batch_size: Annotated[
        int, typer.Option(min=1, max=MAX_BATCH, help="Images of one size that are painted together.")
    ] = 8,
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint many images in one pass each, as DIR/NAME.png.

    Finished images are kept: interrupted, the same command goes on. Images of other inputs are never taken for
    finished, nor replaced. Images that cannot be painted do not stop the others; each gets a line, and the exit status
    is 2.

    Examples: `splice-ff batch pairs.csv -o painted`, `splice-ff batch --look raccoon.jpg photos/ -o raccoons`
    """
    with errors(debug):
        from splice_ff.one_shot.checks import check_size, check_strength
        from splice_ff.utils.files import check_place
        from splice_ff.utils.run_folder import claim_folder, lock_folder

        check_strength(strength)
        if size is not None:
            check_size(size)
        check_precision(precision)
        pairs = _list_pairs(inputs, look, structure, quiet)
        if any(
            path.resolve().parent == output.resolve() for pair in pairs for path in (pair.structure, pair.appearance)
        ):
            raise InputError(f"{output}: holds inputs, which would be taken for finished images; choose another folder")
        check_place(output / RECORD)
        check_backbones([backbone], backbone_weights)

        from splice_ff.one_shot.batch import paint_pairs

        splice = load_model(model, backbone, backbone_weights, device, precision)
        settings = {
            **splice.identity,
            "size": str(size or splice.config.size),
            "strength": f"{strength:g}",
            "precision": precision,
            **{name: _identity(path) for name, path in (("look", look), ("structure", structure))},
        }
        failed, noted = 0, set[str]()

        def on_note(note: str) -> None:
            if not quiet and note not in noted:  # of an image that all pairs have
                noted.add(note)
                bar.clear()
                say(f"note: {note}")

        with lock_folder(output):
            claim_folder(output / RECORD, settings, holds="images")
            finished = [pair for pair in pairs if (output / f"{pair.name}.png").exists()]
            _check_finished(finished, output)
            names = {pair.name for pair in finished}
            todo = [pair for pair in pairs if pair.name not in names]
            facts = facts_of(model, splice, size) | {"strength": f"{strength:g}"}
            try:
                with progress_bar(len(pairs), "image", quiet, len(finished)) as bar:
                    for outcome in paint_pairs(
                        splice, todo, output, size=size, strength=strength, batch_size=batch_size, settings=facts,
                        on_note=on_note,
                    ):  # fmt: skip
                        bar.update()
                        if outcome.error:
                            failed += 1
                            bar.clear()
                            say(f"error: {outcome.name}: {outcome.error}")
            except KeyboardInterrupt:
                say(f"interrupted; the finished images are in {output}, and the same command goes on from there")
                raise
        if not quiet:
            say(f"{output}: {len(todo) - failed} images painted, {len(finished)} kept, {failed} failed")
        if failed:
            raise typer.Exit(2)


def _list_pairs(inputs: Sequence[Path], look: Path | None, structure: Path | None, quiet: bool) -> list[PairFiles]:
    from splice_ff.data.image_list import list_images
    from splice_ff.data.pair_list import PairFiles, read_pairs
    from splice_ff.images import SUFFIXES, check_readable

    if look and structure:
        raise InputError("give --look or --structure, not both: one of them is the same for all inputs")
    if not (look or structure):
        if len(inputs) > 1 or inputs[0].suffix.lower() in SUFFIXES:
            raise InputError("give --look or --structure with images; without them, one list of pairs")
        return read_pairs(inputs[0])
    if structure or (look and look.suffix.lower() in SUFFIXES):
        check_readable(structure or look)  # type: ignore[arg-type]
    elif look:
        check_look(look)
    listed = list_images(inputs)
    if listed.left_out and not quiet:
        say("note: left out: " + ", ".join(f"{count} × {kind}" for kind, count in listed.left_out.items() if count))
    return [PairFiles(name, structure or path, look or path) for name, path in listed.images]


def _check_finished(pairs: Sequence[PairFiles], output: Path) -> None:
    """Raise InputError unless the images of these pairs were painted from the files that they have now."""
    from PIL import Image

    from splice_ff.one_shot.batch import INPUTS, digest_of_inputs

    others = []
    for pair in pairs:
        try:
            with Image.open(output / f"{pair.name}.png") as image:
                made_of = image.info.get(INPUTS)
        except OSError:
            made_of = None
        try:
            if made_of != digest_of_inputs(pair):
                others.append(f"{pair.name}.png")
        except InputError:  # an input that is gone since
            continue
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise InputError(
            f"{output}: holds images of the same names that were painted from other files than these ({others[0]}"
            f"{more}); choose another folder, or remove them"
        )


def _identity(path: Path | None) -> str | None:
    return f"{path.name}, SHA-256 {file_digest(path)[:16]}" if path else None
