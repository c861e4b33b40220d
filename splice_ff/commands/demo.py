"""`splice-ff demo`: the example pair, painted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import Debug, Device, Folder, Quiet, errors, say
from splice_ff.commands.transfer import transfer
from splice_ff.errors import InputError
from splice_ff.utils.bundled import bundled_dir

STRUCTURE, APPEARANCE, PAINTED = "cat.jpg", "raccoon.jpg", "cat-as-raccoon.png"


def demo(
    output: Folder = Path(),
    refine: Annotated[int, typer.Option(min=0, help="Per-pair steps after the one-shot image; 100 take a while.")] = 0,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy two example images into the current folder and paint the first with the look of the second.

    Example: `splice-ff demo`
    """
    with errors(debug):
        for name in (STRUCTURE, APPEARANCE):
            _copy(bundled_dir("examples") / name, output / name)
    structure, appearance, painted = (output / name for name in (STRUCTURE, APPEARANCE, PAINTED))
    if not quiet:
        options = f" --refine {refine}" if refine else ""
        say(f"splice-ff transfer {structure} {appearance} -o {painted}{options}")
    transfer(structure, [appearance], painted, refine=refine, device=device, quiet=quiet, debug=debug)


def _copy(source: Path, target: Path) -> None:
    """Copy a file; another file of that name is left alone.

    Raises:
        InputError: there is one, or the folder takes no file.
    """
    from splice_ff.utils.files import atomic_write, reason

    data = source.read_bytes()
    try:
        if target.exists():
            if target.is_file() and target.read_bytes() == data:
                return
            raise InputError(f"{target}: exists, and is not the example image; choose another folder with -o")
        atomic_write(target, lambda file: file.write_bytes(data))
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({reason(error)}); choose another folder with -o") from error
