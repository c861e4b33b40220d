"""How long one shot takes, part by part.

    python -m eval.oneshot --size 256 --size 512 --size 1024
    python -m eval.oneshot --model checkpoints/pets-tiny

Without a model: a generator with random weights; speed does not depend on the values.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from eval.benchmark import describe_machine
from splice_ff.backbone import ViTFeatures
from splice_ff.errors import InputError
from splice_ff.generators.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.images import load_image, save_image
from splice_ff.losses import VIT_SIZE
from splice_ff.pair import default_device
from splice_ff.pipeline import SpliceFF

PARTS = ("reading", "appearance", "semantics", "UNet", "writing")


def main(
    size: Annotated[list[int] | None, typer.Option(help="Side of the square pictures in pixels; repeat.")] = None,
    model: Annotated[str | None, typer.Option(help="What `SpliceFF.from_pretrained` takes.")] = None,
    backbone: Annotated[str, typer.Option(help="Of the random generator.")] = "vit_mini",
    generator: Annotated[str, typer.Option(help="Size of the random generator: tiny, small or base.")] = "tiny",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Milliseconds: read two PNG files, encode the appearance, the structure's ViT pass, the UNet, write a PNG."""
    device = default_device()
    try:
        splice = (SpliceFF.from_pretrained(model) if model else random_model(backbone, generator)).to(device)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    machine = describe_machine(device)
    what = model or f"random {generator}"
    parameters = sum(p.numel() for p in splice.generator.parameters()) / 1e6
    typer.echo(f"{machine['cpu']}, {machine['threads']} threads, {machine['device']}, torch {machine['torch']}")
    typer.echo(f"{what} ({parameters:.1f} M parameters), {splice.backbone.name} at {splice.config.vit_size} px")
    typer.echo(f"milliseconds, medians of {repeats}; all = median of the sums\n")
    typer.echo(f"{'size':>6}" + "".join(f"{part:>12}" for part in PARTS) + f"{'all':>12}")
    rows = []
    for side in size or (256, 512, 1024):
        times = time_parts(splice, side, repeats)
        row = {part: statistics.median(t[part] for t in times) for part in PARTS}
        row["all"] = statistics.median(sum(t.values()) for t in times)
        typer.echo(f"{side:>6}" + "".join(f"{1000 * seconds:12.1f}" for seconds in row.values()))
        rows.append({"size": side, "seconds": row})
    if output:
        output.write_text(json.dumps({"machine": machine, "model": what, "repeats": repeats, "rows": rows}, indent=1))


def random_model(backbone: str, size: str) -> SpliceFF:
    """A generator with random weights on a backbone."""
    torch.manual_seed(0)
    vit = ViTFeatures.from_name(backbone)
    made = AmortizedGenerator(GeneratorConfig(vit.depth, vit.width, size))
    return SpliceFF(made, vit, vit_size=VIT_SIZE, size=256).eval()


@torch.no_grad()
def time_parts(model: SpliceFF, side: int, repeats: int) -> list[dict[str, float]]:
    """Seconds of each part of one shot on `side` x `side` pictures, worked at in full; a first round is not counted."""
    times = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role in ("structure", "appearance"):
            small = torch.rand(1, 3, side // 8, side // 8)  # photographs are smooth: noise would compress otherwise
            save_image(folder / f"{role}.png", F.interpolate(small, (side, side), mode="bilinear"))
        for _ in range(repeats + 1):
            clock = Clock(model.device)
            with clock("reading"):
                images = [load_image(folder / f"{role}.png").rgb for role in ("structure", "appearance")]
            structure, appearance = (image.to(model.device) for image in images)
            with clock("appearance"):
                tokens = model.embed(appearance)
            with clock("semantics"):
                seen = model.observe(structure)
            with clock("UNet"):
                made = model.generator.paint(structure, seen.semantics, tokens)
            with clock("writing"):
                save_image(folder / "out.png", made)
            times.append(clock.seconds)
    return times[1:]


class Clock:
    """Seconds of named parts: `with clock("reading"): ...`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time a part."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] = time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
