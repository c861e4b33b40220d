"""The analysis tools measured: PCA's time, inversion's distances, and what separates good pairs from shuffled ones.

python -m eval.features pca
python -m eval.features invert ../shared/data/pairs/cat2cat-10/structure.webp
python -m eval.features match ../shared/data/pairs
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer

from splice_ff.analysis.correspondence import MatchStrength, match_strength, thresholds_of
from splice_ff.analysis.inversion import FeatureInversion
from splice_ff.analysis.pca import pca as principal_colors
from splice_ff.analysis.recipes import InversionRecipe
from splice_ff.images import load_image, save_image
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import BACKBONES, FACETS, VIT_SIZE
from splice_ff.vit.weights import load_backbone

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

KINDS = {
    "animal": ("cat2cat", "cats", "dog2dog", "cross", "horse"),
    "mountain": ("landscape",),
    "food": ("fruits", "drinks", "interpolation-kiwi", "interpolation-lemon"),
    "car": ("cars",),
}
"""What is on the pairs, by the beginning of their names; the others are not shuffled."""
FALSE_ALARMS = 0.05
"""Share of good pairs that may be called weak."""
STEPS = 50
"""Quantiles of all values that are tried as thresholds."""


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
    """How well [CLS] cosine and best buddies tell matched pairs from shuffled ones of another kind.

    Thresholds that call 5 % of the matched pairs weak are chosen on one half and tried on the other.
    """
    vit = load_backbone(backbone)
    folders = sorted(folder for folder in pairs.iterdir() if folder.is_dir())
    loaded = {
        folder.name: [load_image(next(folder.glob(f"{part}.*"))).rgb for part in ("structure", "appearance")]
        for folder in folders
    }
    dice = random.Random(seed)
    kinds = {name: kind for name in loaded for kind, starts in KINDS.items() if name.startswith(starts)}
    shuffled: list[tuple[str, str]] = []
    while len(shuffled) < len(loaded):
        a, b = dice.sample(sorted(kinds), 2)
        if kinds[a] != kinds[b]:
            shuffled.append((a, b))
    good = [match_strength(vit, loaded[name][0], loaded[name][1]) for name in loaded]
    bad = [match_strength(vit, loaded[a][0], loaded[b][1]) for a, b in shuffled]
    dice.shuffle(good)

    patches = (VIT_SIZE // vit.patch_size[0]) * (VIT_SIZE // vit.patch_size[1])
    for name, values in (
        ("cosine", [[s.cosine for s in group] for group in (good, bad)]),
        ("share of best buddies", [[s.buddies / patches for s in group] for group in (good, bad)]),
    ):
        quarters = [[f"{q:.3f}" for q in statistics.quantiles(group)] for group in values]
        above = statistics.mean((g > b) + (g == b) / 2 for g in values[0] for b in values[1])
        typer.echo(f"{name}: quartiles {quarters[0]} matched, {quarters[1]} shuffled; area under the curve {above:.3f}")

    half = len(good) // 2
    seen = good[:half] + bad[:half]
    allowed = (
        (_weak(bad[:half], (cosine, share), patches), cosine, share)
        for cosine in statistics.quantiles([s.cosine for s in seen], n=STEPS)
        for share in statistics.quantiles([s.buddies / patches for s in seen], n=STEPS)
        if _weak(good[:half], (cosine, share), patches) <= FALSE_ALARMS
    )
    _, *chosen = max(allowed)
    for where, thresholds in (("chosen here", chosen), ("the library's", thresholds_of(vit.name))):
        rates = [_weak(group[half:], thresholds, patches) for group in (good, bad)]
        typer.echo(
            f"{where}: cosine < {thresholds[0]:.3g}, share < {thresholds[1]:.3g}: on the other half "
            f"{rates[0]:.0%} of the matched and {rates[1]:.0%} of the shuffled pairs are weak"
        )


def _weak(strengths: list[MatchStrength], thresholds: Sequence[float], patches: int) -> float:
    cosine, share = thresholds
    return statistics.mean(s.cosine < cosine and s.buddies < share * patches for s in strengths)


if __name__ == "__main__":
    app()
