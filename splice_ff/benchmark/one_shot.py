"""One shot, part by part: from two files to a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from splice_ff.benchmark.models import make_one_shot
from splice_ff.benchmark.report import Part, spread
from splice_ff.benchmark.timing import Sections, Timing
from splice_ff.images import load_image, save_image
from splice_ff.one_shot.pipeline import SpliceFF

STAGES = ("reading", "ViT", "encoder", "UNet", "writing", "rest")


def measure_one_shot(
    backbones: Sequence[str], generator: str, checkpoint: str | None, sizes: Sequence[int], batches: Sequence[int],
    precisions: Sequence[str], repeats: int, device: torch.device, rates: dict[str, float], compile: bool = False,
) -> Part:  # fmt: skip
    """Milliseconds a batch of square images, each worked at in full.

    Raises:
        InputError: no such checkpoint, backbone or generator.
    """
    header = ("model", "px", "batch", "precision", *(f"{s} ms" for s in STAGES), "all ms (slowest)", "an image")
    part = Part(f"One shot: milliseconds, medians of {repeats}, with floor/time", header)
    for backbone in ("its own",) if checkpoint else backbones:
        model = make_one_shot(backbone, generator, checkpoint).to(device)
        name = checkpoint or f"{generator}, {backbone}"
        for compiled in (False, True) if compile else (False,):
            if compiled:
                for module in (model.backbone, model.generator.encoder, model.generator.unet):
                    module.compile()
            for size, batch, precision in ((s, b, p) for s in sizes for b in batches for p in precisions):
                kind = precision + " compiled" * compiled
                timings = time_one_shot(model, size, batch, precision, repeats, device, rates[precision], compiled)
                whole = timings.pop("all")
                row = {"model": name, "size": size, "batch": batch, "precision": kind, **whole.to_dict()}
                part.rows.append(row | {"parts": {stage: timings[stage].to_dict() for stage in STAGES}})
                cells = [_cell(timings[stage]) for stage in STAGES]
                all_of_it = f"{spread(whole, 1000)} {whole.share:.0%}"
                each = f"{1000 * whole.median / batch:.4g}"
                part.table.append([name, str(size), str(batch), kind, *cells, all_of_it, each])
        parameters = sum(p.numel() for p in model.generator.parameters()) / 1e6
        vit = f"{model.backbone.name} at {model.config.vit_size} px"
        part.notes.append(f"{name}: a generator of {parameters:.1f} M parameters, {vit}.")
    part.notes.append(
        "reading: both PNG files; ViT: its passes over both images; encoder: of the appearance tokens; rest: resizing."
    )
    return part


def time_one_shot(
    model: SpliceFF, size: int, batch: int, precision: str, repeats: int, device: torch.device, rate: float,
    compiled: bool = False,
) -> dict[str, Timing]:  # fmt: skip
    """A batch of size x size images as a whole ("all") and each of `STAGES`."""
    sections = Sections(device)
    modules = {"ViT": model.backbone, "encoder": model.generator.encoder, "UNet": model.generator.unet}
    with tempfile.TemporaryDirectory() as name, sections.watch(modules):
        folder = Path(name)
        for role in ("structure", "appearance"):
            small = torch.rand(1, 3, size // 8, size // 8)  # photographs are smooth: noise would compress otherwise
            save_image(folder / f"{role}.png", F.interpolate(small, (size, size), mode="bilinear"))

        def work() -> None:
            with sections("reading"):
                structure, appearance = (
                    torch.cat([load_image(folder / f"{role}.png").rgb for _ in range(batch)]).to(device)
                    for role in ("structure", "appearance")
                )
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = model.paint(structure, model.embed(appearance), size=size)
            with sections("writing"):
                for i, image in enumerate(output.cpu().split(1)):
                    save_image(folder / f"out-{i}.png", image)

        return sections.time(work, repeats, rate, again=compiled)


def _cell(timing: Timing) -> str:
    return f"{1000 * timing.median:.4g}" + (f" {timing.share:.0%}" if timing.operations else "")
