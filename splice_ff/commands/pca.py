"""`splice-ff pca`: features as colors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from splice_ff.commands._options import (
    Debug,
    Device,
    Folder,
    Quiet,
    Weights,
    errors,
    find_backbone,
    find_device,
    load,
    say,
)
from splice_ff.commands._vit import FACET_NAMES, ViTSize, facts_of, parse_layers
from splice_ff.errors import InputError
from splice_ff.utils.extras import need


def pca(
    images: Annotated[list[Path], typer.Argument(help="Images to look at.", show_default=False)],
    output: Folder = Path("pca"),
    facets: Annotated[
        str | None,
        typer.Option(
            help="Some of keys, queries, values, tokens, self_similarity, with commas between. By default all."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers, from 0 or negative from the end: 2,5,8,11. By default four of them.")
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="One basis for all images: a color means the same in each.")
    ] = False,
    mask: Annotated[
        bool, typer.Option("--mask", help="Show only the object, found by the first component; the rest is black.")
    ] = False,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Frozen ViT; repeat to see several side by side. See `optimize --help`.")
    ] = None,
    weights: Weights = None,
    size: ViTSize = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show features as colors: their first three principal components.

    Writes grid.png and, for each image, a folder with the single ones at its size.

    Example: `splice-ff pca cat.jpg tiger.jpg --joint --mask -o seen`
    """
    with errors(debug):
        need("matplotlib", extra="features")
        from splice_ff.analysis.figures import grid_figure, picture_of, thumbnail_size
        from splice_ff.analysis.patches import upsample_map
        from splice_ff.analysis.pca import PCA_FACETS, pca_pictures
        from splice_ff.images import check_writable, save_image
        from splice_ff.vit.inputs import VIT_SIZE

        chosen = _choose(facets, PCA_FACETS)
        names: list[str | None] = [*dict.fromkeys(backbone)] if backbone else [None]
        if weights and len(names) > 1:
            raise InputError("--weights belong to one backbone: name only that one")
        check_writable(output / "grid.png")
        loaded = [load(path, quiet).rgb for path in images]
        columns = ["input"]
        rows = [[rgb[0]] for rgb in loaded for _ in chosen]
        where = find_device(device)
        for name in names:
            vit = find_backbone(name, weights).to(where)
            numbers = parse_layers(layers, vit) if layers else _four_layers(vit.depth)
            pictures = pca_pictures(vit, loaded, chosen, numbers, joint=joint, mask=mask, size=size or VIT_SIZE)
            columns += [f"{vit.name}\nlayer {n}" if len(names) > 1 else f"layer {n}" for n in numbers]
            for i, found in enumerate(pictures):
                for j, facet in enumerate(chosen):
                    rows[i * len(chosen) + j] += [
                        upsample_map(found[facet, n], thumbnail_size(loaded[i])) for n in numbers
                    ]
            for folder, rgb, found in zip(_folder_names(images), loaded, pictures, strict=True):
                for (facet, n), picture in found.items():
                    facts = facts_of(vit) | {"facet": facet, "layer": str(n), "joint": str(joint)}
                    path = output / folder / f"{_slug(vit.name)}-{facet}-layer{n:02d}.png"
                    save_image(path, upsample_map(picture, (rgb.shape[-2], rgb.shape[-1])), settings=facts)
        row_names = [FACET_NAMES.get(facet, facet) for facet in chosen] * len(images)
        save_image(output / "grid.png", picture_of(grid_figure(rows, columns, row_names)))
        if not quiet:
            say(str(output / "grid.png"))


def _choose(text: str | None, known: Sequence[str]) -> list[str]:
    """Facets by name, each once; all without a text."""
    if text is None:
        return list(known)
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in known:
            raise InputError(f"unknown facet '{part}'. Known: {', '.join(known)}")
    return list(dict.fromkeys(parts))


def _four_layers(depth: int) -> list[int]:
    """Four layers spread evenly, the deepest included."""
    return sorted({max(0, depth * (i + 1) // 4 - 1) for i in range(4)})


def _slug(name: str) -> str:
    """A backbone's name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def _folder_names(paths: Sequence[Path]) -> list[str]:
    """Folder names for images: their stems, numbered where they repeat."""
    names: list[str] = []
    for path in paths:
        names.append(next(name for name in _numbered(path.stem) if name not in names))
    return names


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1
