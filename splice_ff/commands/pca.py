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
    expanded,
    find_backbone,
    find_device,
    load,
    say,
)
from splice_ff.commands._vit import ViTSize, check_files, check_layers, facts_of
from splice_ff.errors import InputError


def pca(
    images: Annotated[list[Path], typer.Argument(help="Images to look at.", show_default=False, callback=expanded)],
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
        list[str] | None,
        typer.Option(help="Frozen ViT, by default dino_vits8; repeat to see several side by side. See `match --help`."),
    ] = None,
    weights: Weights = None,
    size: ViTSize = 224,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show features as colors: their first three principal components.

    Writes grid.png and, for each image, a folder with the single ones at its size. Existing ones are replaced.

    Example: `splice-ff pca cat.jpg raccoon.jpg --joint --mask -o colors`
    """
    with errors(debug):
        from splice_ff.analysis.recipes import choose_facets, parse_layers

        chosen, numbers = choose_facets(facets), parse_layers(layers) if layers else None
        names: list[str | None] = [*dict.fromkeys(backbone)] if backbone else [None]
        if weights and len(names) > 1:
            raise InputError("--weights belong to one backbone: name only that one")
        check_files(images, output / "grid.png", names, weights)

        from splice_ff.analysis.figures import figure_image, pca_figure
        from splice_ff.analysis.patches import upsample_map
        from splice_ff.analysis.pca import pca as principal_colors
        from splice_ff.images import save_image

        loaded = [load(path, quiet).rgb for path in images]
        where = find_device(device)
        maps = {}
        for name in names:
            vit = find_backbone(name, weights).to(where)
            of_vit = check_layers(numbers, vit) if numbers else None
            maps[vit.name] = principal_colors(vit, loaded, chosen, of_vit, joint=joint, mask=mask, size=size)
            for folder, rgb, of_image in zip(_folder_names(images), loaded, maps[vit.name], strict=True):
                for (facet, layer), colors in of_image.items():
                    facts = facts_of(vit) | {"facet": facet, "layer": str(layer), "joint": str(joint)}
                    path = output / folder / f"{_slug(vit.name)}-{facet}-layer{layer:02d}.png"
                    save_image(path, upsample_map(colors, (rgb.shape[-2], rgb.shape[-1])), settings=facts)
        save_image(output / "grid.png", figure_image(pca_figure([rgb[0] for rgb in loaded], maps)))
        if not quiet:
            say(str(output / "grid.png"))


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
