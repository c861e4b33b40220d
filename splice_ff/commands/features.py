"""`splice-ff pca`, `invert`, `attention`, `match` and `explain`: what the backbone sees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

import splice_ff
from splice_ff.attention import cls_attention
from splice_ff.backbone import ViTFeatures
from splice_ff.commands.common import (
    Appearance,
    Backbone,
    Debug,
    Device,
    Folder,
    Output,
    Quiet,
    Seed,
    Structure,
    Weights,
    bar,
    errors,
    find_device,
    load,
    say,
)
from splice_ff.correspondence import match_images, match_strength
from splice_ff.errors import InputError
from splice_ff.explain import explain as explain_result
from splice_ff.images import check_place, check_writable, save_image
from splice_ff.inversion import FeatureInversion, InversionRecipe
from splice_ff.losses import VIT_SIZE
from splice_ff.pair import choose_backbone, make_recipe
from splice_ff.pair_optimizer import DivergedError, load_state, save_state
from splice_ff.patches import enlarge_map, resize_to_patches
from splice_ff.pca import PCA_FACETS, pca_pictures

SAVE_STATE_EVERY = 100
FACET_NAMES = {"self_similarity": "self-similarity"}

ViTSize = Annotated[int, typer.Option(min=33, help="Shorter side, in pixels, of what the ViT sees.")]
Layer = Annotated[int, typer.Option(help="Layer of the ViT, from 0; -1 is the deepest.")]


def pca(
    images: Annotated[list[Path], typer.Argument(help="Pictures to look at.", show_default=False)],
    output: Folder = Path("pca"),
    facets: Annotated[str, typer.Option(help="Some of the default's, with commas between.")] = ",".join(PCA_FACETS),
    layers: Annotated[
        str | None, typer.Option(help="Layers, from 0 or negative from the end: 2,5,8,11. By default four of them.")
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="One basis for all pictures: a colour means the same in each.")
    ] = False,
    mask: Annotated[
        bool, typer.Option("--mask", help="Show only the object, found by the first component; the rest is black.")
    ] = False,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Frozen ViT; repeat to see several side by side. See `optimize --help`.")
    ] = None,
    weights: Weights = None,
    size: ViTSize = VIT_SIZE,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show features as colours: their first three principal components.

    Writes grid.png and, for each picture, a folder with the single ones at its size.

    Example: `splice-ff pca cat.jpg tiger.jpg --joint --mask -o seen`
    """  # fmt: skip
    with errors(debug):
        from splice_ff.figures import grid_figure, picture_of, thumbnail_size

        chosen = _choice(facets, PCA_FACETS, "facet")
        if weights and len(backbone or [""]) > 1:
            raise InputError("--weights belong to one backbone: name only that one")
        check_writable(output / "grid.png")
        loaded = [load(path, quiet).rgb for path in images]
        columns = ["input"]
        rows = [[rgb[0]] for rgb in loaded for _ in chosen]
        where = find_device(device)
        names: list[str | None] = [*dict.fromkeys(backbone)] if backbone else [None]
        for name in names:
            vit = _backbone(name, weights).to(where)
            numbers = _layers(layers, vit)
            pictures = pca_pictures(vit, loaded, chosen, numbers, joint=joint, mask=mask, size=size)
            columns += [f"{vit.name}\nlayer {n}" if len(names) > 1 else f"layer {n}" for n in numbers]
            for i, found in enumerate(pictures):
                for j, facet in enumerate(chosen):
                    rows[i * len(chosen) + j] += [
                        enlarge_map(found[facet, n], thumbnail_size(loaded[i])) for n in numbers
                    ]
            for folder, rgb, found in zip(_names(images), loaded, pictures, strict=True):
                for (facet, n), picture in found.items():
                    facts = _facts(vit) | {"facet": facet, "layer": str(n), "joint": str(joint)}
                    path = output / folder / f"{_slug(vit.name)}-{facet}-layer{n:02d}.png"
                    save_image(path, enlarge_map(picture, (rgb.shape[-2], rgb.shape[-1])), settings=facts)
        row_names = [FACET_NAMES.get(facet, facet) for facet in chosen] * len(images)
        save_image(output / "grid.png", picture_of(grid_figure(rows, columns, row_names)))
        if not quiet:
            say(str(output / "grid.png"))


def invert(
    image: Annotated[Path, typer.Argument(help="Picture whose features are inverted.", show_default=False)],
    output: Folder = Path("inverted"),
    feature: Annotated[str, typer.Option(help="cls, keys or self_similarity.")] = "keys",
    layers: Annotated[str, typer.Option(help="Layers, from 0 or negative from the end: 2,5,8,11.")] = "-1",
    seeds: Annotated[int, typer.Option(min=1, help="Repeated runs from different noise.")] = 1,
    prior: Annotated[
        str, typer.Option(help="cnn: a network paints the picture. pixels: optimised directly, for contrast.")
    ] = "cnn",
    steps: Annotated[int, typer.Option(help="Number of steps. Published: 20000.")] = 300,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = VIT_SIZE,
    seed: Seed = 0,
    preview_every: Annotated[
        int | None, typer.Option(min=1, help="Write the grid every so many steps, as grid-step00100.png.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Keep the run here, every 100 steps and on ctrl-C; if the file exists, go on from it."),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find pictures that have the same features: what a feature holds comes back.

    Writes grid.png and the single pictures. ctrl-C writes what is there.

    Example: `splice-ff invert cat.jpg --feature cls --layers 2,5,8,11 --seeds 2 -o inverted`
    """  # fmt: skip
    with errors(debug):
        # The recipe checks the two names itself.
        recipe = InversionRecipe(feature, prior, steps, size)  # type: ignore[arg-type]
        check_writable(output / "grid.png")
        if state:
            check_place(state)
        picture = load(image, quiet).rgb
        vit = _backbone(backbone, weights)
        where, numbers = find_device(device), _layers(layers, vit)
        run = FeatureInversion(picture, vit, recipe, layers=numbers, seeds=range(seed, seed + seeds), device=where)
        if state and state.exists():
            load_state(run, state)
            if not quiet:
                say(f"going on from step {run.step_count} of {state}")
        failure: BaseException | None = None
        try:
            for _ in _progress(run, quiet):
                if preview_every and run.step_count % preview_every == 0:
                    _write_grid(run, output / f"grid-step{run.step_count:05d}.png")
                if state and run.step_count % SAVE_STATE_EVERY == 0:
                    save_state(run, state)
        except (KeyboardInterrupt, DivergedError) as error:
            failure = error
        for found in run.result():
            facts = run.settings() | {"layer": str(found.layer), "seed": str(found.seed), "image": image.name}
            facts |= {"step": str(run.step_count), "distance": f"{found.distance:.6g}", "start": f"{found.start:.6g}"}
            name = f"{recipe.feature}-layer{found.layer:02d}-seed{found.seed}.png"
            save_image(output / name, found.image, settings=facts)
            if not quiet:
                say(f"{output / name}: distance {found.distance:.4g}, from {found.start:.4g} at the start")
        _write_grid(run, output / "grid.png")
        if state and not isinstance(failure, DivergedError):
            save_state(run, state)
        if isinstance(failure, KeyboardInterrupt):
            say(f"interrupted at step {run.step_count}; the pictures so far are in {output}")
            raise typer.Exit(130)
        if failure:
            raise InputError(f"{failure}; the last good pictures are in {output}") from failure


def attention(
    image: Annotated[Path, typer.Argument(help="Picture to look at.", show_default=False)],
    output: Output = Path("attention.png"),
    layer: Layer = -1,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = VIT_SIZE,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where the [CLS] token looks, head by head."""
    with errors(debug):
        from splice_ff.figures import attention_picture, picture_of, wrapped_figure

        check_writable(output)
        picture = load(image, quiet).rgb
        vit = _backbone(backbone, weights).to(find_device(device))
        (number,) = _layers(str(layer), vit)
        heads = cls_attention(vit, resize_to_patches(picture.to(vit.mean.device), vit, size), number)[0]
        maps = [("mean of heads", heads.mean(0)), *((f"head {i}", head) for i, head in enumerate(heads))]
        cells = [picture[0], *(attention_picture(found.cpu(), picture[0]) for _, found in maps)]
        captions = [f"input ({vit.name}, layer {number})", *(name for name, _ in maps)]
        figure = wrapped_figure(cells, captions, across=5)
        save_image(output, picture_of(figure), settings=_facts(vit) | {"layer": str(number)})
        if not quiet:
            say(str(output))


def match(
    image_a: Annotated[Path, typer.Argument(help="First picture.", show_default=False)],
    image_b: Annotated[Path, typer.Argument(help="Second picture.", show_default=False)],
    output: Output = Path("match.png"),
    layer: Layer = -1,
    backbone: Backbone = None,
    weights: Weights = None,
    size: ViTSize = VIT_SIZE,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show which parts of two pictures the ViT takes for the same: best buddies among the keys.

    A transfer paints along such ties. Where there are few, or wrong ones, it must fail.
    """
    with errors(debug):
        from splice_ff.figures import matches_figure, picture_of

        check_writable(output)
        a, b = (load(path, quiet).rgb for path in (image_a, image_b))
        vit = _backbone(backbone, weights).to(find_device(device))
        (number,) = _layers(str(layer), vit)
        matches = match_images(vit, a, b, number, size)
        text = match_strength(vit, a, b).text
        figure = matches_figure(a[0], b[0], matches, (image_a.name, image_b.name), text)
        save_image(output, picture_of(figure), settings=_facts(vit) | {"layer": str(number), "verdict": text})
        if not quiet:
            say(f"{output}: {len(matches.similarity)} pairs drawn, of layer {number}; as the losses see it, {text}")


def explain(
    structure: Structure,
    appearance: Appearance,
    result: Annotated[Path, typer.Argument(metavar="OUTPUT", help="What was made of the two.", show_default=False)],
    output: Output = Path("explained.png"),
    backbone: Backbone = None,
    weights: Weights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show why a result looks as it does: structure loss by patch, [CLS] distance by layer, what was matched.

    Prints a verdict: whether the two pictures' meanings match.

    Example: `splice-ff explain cat.jpg tiger.jpg tiger-cat.png -o explained.png`
    """  # fmt: skip
    with errors(debug):
        from splice_ff.figures import explanation_figure, picture_of

        check_writable(output)
        ours, look, made = (load(path, quiet).rgb for path in (structure, appearance, result))
        vit = _backbone(backbone, weights).to(find_device(device))
        found = explain_result(vit, ours, look, made)
        figure = explanation_figure(ours[0], look[0], made[0], found)
        facts = _facts(vit) | {"verdict": found.strength.text, "loss_structure": f"{found.structure_loss:.6g}"}
        save_image(output, picture_of(figure), settings=facts)
        typer.echo(found.strength.text)
        if not quiet:
            say(str(output))


def _backbone(name: str | None, weights: Path | None) -> ViTFeatures:
    """The backbone asked for, or optimize's default, with a note (also when quiet) if a stand-in takes its place."""
    vit, notice = choose_backbone(make_recipe("fast"), name, weights)
    if notice:
        say(f"note: {notice}")
    return vit


def _layers(text: str | None, vit: ViTFeatures) -> list[int]:
    """Layers from 0, in order; without a text four spread evenly, the deepest included."""
    if text is None:
        return sorted({max(0, vit.depth * (i + 1) // 4 - 1) for i in range(4)})
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"layers '{text}': whole numbers with commas between, like 2,5,8,11") from error
    for number in numbers:
        if not -vit.depth <= number < vit.depth:
            raise InputError(f"layer {number}: {vit.name} has {vit.depth} layers (0 to {vit.depth - 1})")
    return sorted({number % vit.depth for number in numbers})


def _choice(text: str, known: Sequence[str], what: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in known:
            raise InputError(f"unknown {what} '{part}'. Known: {', '.join(known)}")
    return list(dict.fromkeys(parts))


def _facts(vit: ViTFeatures) -> dict[str, str]:
    return {"splice_ff": splice_ff.__version__, "backbone": vit.name, "backbone_sha256": vit.fingerprint}


def _slug(name: str) -> str:
    """A backbone's name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def _names(paths: Sequence[Path]) -> list[str]:
    """Folder names for pictures: their stems, numbered where they repeat."""
    names: list[str] = []
    for path in paths:
        names.append(next(n for n in _numbered(path.stem) if n not in names))
    return names


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def _progress(run: FeatureInversion, quiet: bool) -> Iterator[None]:
    """Take the remaining steps under a progress bar that shows the mean distance."""
    with bar(run.recipe.steps, "step", quiet, run.step_count) as shown:
        while not run.done:
            distances = run.step()
            shown.set_postfix({"distance": f"{distances.mean().item():.4g}"}, refresh=False)
            shown.update()
            yield


def _write_grid(run: FeatureInversion, path: Path) -> None:
    """Input and inversions: layers across, seeds down, with the distances."""
    from splice_ff.figures import grid_figure, picture_of

    found = run.result()
    seeds, layers = list(dict.fromkeys(f.seed for f in found)), list(dict.fromkeys(f.layer for f in found))
    by_place = {(f.seed, f.layer): f for f in found}
    rows = [[run.image[0].cpu(), *(by_place[seed, n].image for n in layers)] for seed in seeds]
    captions = [["", *(f"distance {by_place[seed, n].distance:.3g}" for n in layers)] for seed in seeds]
    what = FACET_NAMES.get(run.recipe.feature, run.recipe.feature)
    columns = ["input", *(f"{what}, layer {n}" for n in layers)]
    names = [f"seed {s}" for s in seeds] if len(seeds) > 1 else [""]
    save_image(path, picture_of(grid_figure(rows, columns, names, captions)), settings=run.settings())
