"""What a backbone's [CLS] knows: labels and colors, as a table.

    python -m eval.backbones ../shared/data/train/train-004.parquet -b vit_mini -b runs/backbone/dino/backbone \
        --subset cat --subset dog

k-NN: the k = 15 nearest by cosine of the normed [CLS], by majority. Linear: ridge regression to one-hot labels, in
closed form. Color, spread: R^2 of the images' Lab means and deviations, read from [CLS] by ridge regression; the
mean of L*, a* and b*. The first 70 % of the images are references; the others are judged. Noise: how far +-8/255
move the deepest [CLS] and the keys' self-similarity at 224 px, as a share of the mean square difference between two
images; contrast: that difference for self-similarity.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer

from splice_ff.commands._options import Device, errors, find_device, say
from splice_ff.data.image_dataset import ImageRows, preload
from splice_ff.data.sources import open_dataset
from splice_ff.errors import InputError
from splice_ff.pretraining.probes import (
    REFERENCES,
    cls_tokens,
    knn_accuracy,
    linear_accuracy,
    measure,
    noise_response,
    with_labels,
)
from splice_ff.vit.weights import load_backbone

NOISY = 256
"""Images on which the response to noise is measured."""


def main(
    source: Annotated[str, typer.Argument(help="Folder, .parquet, .tar or hub name, with labels.")],
    backbone: Annotated[list[str], typer.Option("--backbone", "-b", help="Name or folder; may be repeated.")],
    split: str = "train",
    subset: Annotated[list[str] | None, typer.Option(help="A label of a smaller task; give at least two.")] = None,
    side: Annotated[int, typer.Option(help="Pixels of the squares that are held.")] = 160,
    size: Annotated[int | None, typer.Option(help="Pixels that the ViT sees; its own if omitted.")] = None,
    device: Device = None,
    debug: bool = False,
) -> None:
    """Measure backbones on labeled images."""
    with errors(debug):
        where = find_device(device)
        cache = preload(ImageRows(open_dataset(source, split), side))
        readable = [i for i in range(len(cache)) if i not in cache.unreadable]
        if cache.labels is None:
            raise InputError(f"{source}: has no labels; name a folder with a subfolder for each, or a column 'label'")
        pixels, labels = cache.pixels[torch.tensor(readable)], [cache.labels[i] for i in readable]
        chosen = with_labels(labels, subset or ())
        if subset and len({labels[i] for i in chosen}) < 2:
            raise InputError(f"--subset {' --subset '.join(subset)}: fewer than two of these labels are in {source}")
        few = " and ".join(subset or ())
        names = ["k-NN", "linear"] + ([f"k-NN {few}", f"linear {few}"] if subset else []) + ["color R²", "spread R²"]
        names += ["noise [CLS]", "noise keys", "contrast"]
        typer.echo(f"{len(labels)} images, {len(set(labels))} labels" + (f"; {len(chosen)} {few}" if subset else ""))
        typer.echo("| backbone | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
        for name in backbone:
            start = time.perf_counter()
            vit = load_backbone(name).to(where)
            features = cls_tokens(vit, pixels, size)
            found = measure(features, pixels, labels)
            values = [found["knn"], linear_accuracy(features, labels, round(REFERENCES * len(labels)))]
            if subset:
                few_labels, few_features = [labels[i] for i in chosen], features[chosen]
                references = round(REFERENCES * len(chosen))
                values += [f(few_features, few_labels, references) for f in (knn_accuracy, linear_accuracy)]
            shown = [f"{100 * v:.1f} %" for v in values] + [f"{found[k]:.2f}" for k in ("color", "spread")]
            response = noise_response(vit, pixels[:NOISY])
            shown += [f"{response[k]:.1g}" for k in ("cls", "keys")] + [f"{response['contrast']:.3f}"]
            typer.echo(f"| {name} | " + " | ".join(shown) + " |")
            say(f"{name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    app.command()(main)
    app()
