"""The analysis tools measured: PCA's time, inversion's distances, and what separates good pairs from shuffled ones.

python -m eval.features pca
python -m eval.features invert ../shared/data/pairs/cat2cat-10/structure.webp
python -m eval.features match ../shared/data/pairs
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer

from splice_ff.analysis.correspondence import THRESHOLDS, match_strength
from splice_ff.analysis.inversion import FeatureInversion
from splice_ff.analysis.pca import pca as principal_colors
from splice_ff.analysis.recipes import InversionRecipe
from splice_ff.data.pair_list import read_pairs
from splice_ff.evaluation.rows import with_domains
from splice_ff.images import load_image, save_image
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import BACKBONES, FACETS, VIT_SIZE
from splice_ff.vit.weights import load_backbone

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def pca(backbone: str = "dino_vits16", repeats: int = 5) -> None:
    """Seconds for one image at 3 layers x 4 facets, official size, random weights."""
    torch.manual_seed(0)
    vit = ViTFeatures(timm.create_model(BACKBONES[backbone].timm_name, num_classes=0))
    image = torch.rand(1, 3, VIT_SIZE, VIT_SIZE)
    layers = [vit.depth * (i + 1) // 3 - 1 for i in range(3)]
    principal_colors(vit, [image], FACETS, layers)
    seconds, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        principal_colors(vit, [image], FACETS, layers)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    typer.echo(
        f"{backbone}, {VIT_SIZE} px, layers {layers}, {len(FACETS)} facets, {torch.get_num_threads()} threads: "
        f"median {statistics.median(seconds):.2f} s, fastest {min(seconds):.2f}; {statistics.median(cpu):.2f} s of CPU"
    )


@app.command()
def invert(
    images: list[Path],
    feature: str = "keys",
    layers: str = "-1",
    steps: int = 300,
    size: int = VIT_SIZE,
    backbone: str = "vit_mini",
    output: Annotated[Path | None, typer.Option(help="Also write input and inversions side by side, here.")] = None,
) -> None:
    """How far the distance falls, in how many seconds and ViT passes.

    A pass is one call of the ViT, however many images are in its batch. The original program inverts one feature of
    one layer once, with one pass a step: as many passes a step as there are runs.
    """
    vit = load_backbone(backbone)
    for path in images:
        recipe = InversionRecipe(feature, "cnn", steps, size)  # type: ignore[arg-type]
        run = FeatureInversion(vit, load_image(path).rgb, recipe, layers=[int(part) for part in layers.split(",")])
        passes: list[int] = []
        hook = vit.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        start = time.process_time()
        run.run()
        seconds = time.process_time() - start
        hook.remove()
        typer.echo(f"{path}: {steps} steps, {seconds:.0f} s of CPU, {len(passes) / steps:g} ViT passes a step")
        inversions = run.result()
        for one in inversions:
            ratio = one.start / one.distance
            typer.echo(
                f"  {feature}, layer {one.layer}: {one.start:.4g} to {one.distance:.4g} ({ratio:.0f} times less)"
            )
        if output:
            side_by_side = torch.cat([run.image[0], *(one.image for one in inversions)], -1)
            save_image(output / f"{path.parent.name}-{path.stem}-{feature}.png", side_by_side)


@app.command()
def match(pairs: Path, backbone: str = "vit_mini", seed: int = 0) -> None:
    """How well the likeness of mean patch tokens tells matched pairs from mixed ones.

    Every pair of animals is also mixed with one of mountains, both ways. The threshold that calls 5 % of the matched
    pairs weak is chosen on one half and tried on the other.
    """
    vit, dice = load_backbone(backbone), random.Random(seed)
    listed = with_domains(read_pairs(pairs), pairs)
    loaded = {pair.name: [load_image(path).rgb for path in (pair.structure, pair.appearance)] for pair in listed}
    mountains = [pair.name for pair in listed if pair.domain == "mountain"]
    mixed = [(pair.name, dice.choice(mountains)) for pair in listed if pair.domain != "mountain"]
    mixed += [(b, a) for a, b in mixed]
    good = [match_strength(vit, *images).similarity for images in loaded.values()]
    bad = [match_strength(vit, loaded[a][0], loaded[b][1]).similarity for a, b in mixed]
    for values in (good, bad):
        dice.shuffle(values)
    above = statistics.mean((g > b) + (g == b) / 2 for g in good for b in bad)
    typer.echo(f"{len(good)} matched, {len(bad)} mixed pairs; area under the curve {above:.3f}")
    chosen = statistics.quantiles(good[::2], n=20)[0]
    for name, threshold in (("chosen on one half", chosen), ("the library's", THRESHOLDS.get(backbone, -1.0))):
        caught, alarms = (statistics.mean(x < threshold for x in values[1::2]) for values in (bad, good))
        typer.echo(f"{name}, below {threshold:.3f}: {caught:.0%} of the mixed and {alarms:.0%} of the matched pairs")


if __name__ == "__main__":
    app()
