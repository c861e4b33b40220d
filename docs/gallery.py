"""Paint the figures of the gallery: `python docs/gallery.py`, minutes on a CPU.

Each pair of examples/pairs.csv is a row of structure, appearance, one-shot, and one-shot with 100 refining steps.
"""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image, ImageOps

from splice_ff import SpliceFF

ROOT = Path(__file__).parents[1]
HEIGHT = 200
"""Of a row, in pixels."""


def row(images: list[Image.Image]) -> Image.Image:
    """The images beside one another, all of one height."""
    fitted = [
        image.convert("RGB").resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)
        for image in images
    ]
    canvas = Image.new("RGB", (sum(image.width for image in fitted), HEIGHT))
    left = 0
    for image in fitted:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def main() -> None:
    """Write docs/figures/gallery-<name>.jpg."""
    model = SpliceFF.from_pretrained("everyday")
    with (ROOT / "examples" / "pairs.csv").open(encoding="utf-8") as file:
        for pair in csv.DictReader(file):
            inputs = [ROOT / "examples" / pair[role] for role in ("structure", "appearance")]
            painted = [model(*inputs), model(*inputs, refine=100)]
            images = [*(ImageOps.exif_transpose(Image.open(path)) for path in inputs), *painted]
            row(images).save(ROOT / "docs" / "figures" / f"gallery-{pair['name']}.jpg", quality=85, optimize=True)
            print(pair["name"])


if __name__ == "__main__":
    main()
