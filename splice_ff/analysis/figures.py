"""Captioned figures of what the analysis tools compute. Needs matplotlib, which is slow to import: import this late.

Figures are matplotlib's; `figure_image` turns one into a tensor that `save_image` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from splice_ff.analysis.correspondence import Matches
from splice_ff.analysis.explain import Explanation
from splice_ff.analysis.inversion import Inversion
from splice_ff.analysis.patches import upsample_map

DPI = 150
CELL = 2.1
"""Inches that an image's longer side takes in a grid."""
THUMBNAIL_SIDE = 640
"""Longer side, in pixels, of images in figures; more would not be seen."""
LINES = 16
"""How many of the most similar matches are also joined by a line; more would hide the images."""
TITLES = {"self_similarity": "self-similarity"}
"""Names of facets in figures, where they are not those in options."""


def figure_image(figure: Figure) -> Tensor:
    """A figure as an image (3, H, W) in [0, 1]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgb = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(rgb).permute(2, 0, 1).float() / 255


def pca_figure(images: Sequence[Tensor], maps: Mapping[str, Sequence[Mapping[tuple[str, int], Tensor]]]) -> Figure:
    """Images (3, H, W), a row for each facet; beside them their maps, a column for each backbone and layer.

    Args:
        images: as many as each backbone has maps.
        maps: by the backbone's name, what `pca` returned; the same facets for all.
    """
    facets = list(dict.fromkeys(facet for facet, _ in next(iter(maps.values()))[0]))
    columns, rows = ["input"], [[image] for image in images for _ in facets]
    for name, of_images in maps.items():
        layers = sorted({layer for _, layer in of_images[0]})
        columns += [f"{name}\nlayer {layer}" if len(maps) > 1 else f"layer {layer}" for layer in layers]
        for i, (image, of_image) in enumerate(zip(images, of_images, strict=True)):
            for j, facet in enumerate(facets):
                row = rows[i * len(facets) + j]
                row += [upsample_map(of_image[facet, layer], _thumbnail_size(image)) for layer in layers]
    return grid_figure(rows, columns, [TITLES.get(facet, facet) for facet in facets] * len(images))


def attention_figure(image: Tensor, attention: Tensor, title: str) -> Figure:
    """An image (3, H, W), the mean of its attention maps (heads, h, w), and each of them, as heat maps over it."""
    maps = [("mean of heads", attention.mean(0)), *((f"head {i}", head) for i, head in enumerate(attention))]
    cells = [image, *(_heat_map(values.cpu(), image) for _, values in maps)]
    return wrapped_figure(cells, [title, *(name for name, _ in maps)], across=5)


def inversion_figure(image: Tensor, inversions: Sequence[Inversion], feature: str) -> Figure:
    """The inverted image (3, H, W) and its inversions: layers across, seeds down, with their distances."""
    seeds, layers = list(dict.fromkeys(i.seed for i in inversions)), list(dict.fromkeys(i.layer for i in inversions))
    by_place = {(i.seed, i.layer): i for i in inversions}
    rows = [[image, *(by_place[seed, layer].image for layer in layers)] for seed in seeds]
    captions = [["", *(f"distance {by_place[seed, layer].distance:.3g}" for layer in layers)] for seed in seeds]
    columns = ["input", *(f"{TITLES.get(feature, feature)}, layer {layer}" for layer in layers)]
    return grid_figure(rows, columns, [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [""], captions)


def grid_figure(
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str],
    row_names: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Images in rows and columns, named above and at the left.

    Args:
        rows: images (3, H, W) in [0, 1], or None for an empty place; as many in each row as there are `columns`.
        columns, row_names: short texts, or "".
        captions: texts below the images, in the same order.
    """
    height, width = next(image for row in rows for image in row if image is not None).shape[-2:]
    scale = CELL / max(height, width)
    below = 0.08 if captions is None else 0.28
    above = 0.25 * max((name.count("\n") + 1 for name in columns if name), default=0)
    figure = Figure(
        (len(columns) * (width * scale + 0.08) + 0.4, len(rows) * (height * scale + below) + above),
        dpi=DPI,
        layout="constrained",
    )
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            _bare(axes[i, j])
            if image is not None:
                _show(axes[i, j], image)
            if captions:
                axes[i, j].set_xlabel(captions[i][j], fontsize=8)
            if i == 0:
                axes[i, j].set_title(columns[j], fontsize=9)
        axes[i, 0].set_ylabel(row_names[i], fontsize=9)
    return figure


def wrapped_figure(images: Sequence[Tensor], captions: Sequence[str], across: int) -> Figure:
    """Images (3, H, W) in [0, 1] of one size in reading order, at most `across` in a row, captions below."""
    across = min(across, len(images))
    count = -(-len(images) // across)
    missing = count * across - len(images)
    cells, texts = [*images, *[None] * missing], [*captions, *[""] * missing]
    rows = [slice(i * across, (i + 1) * across) for i in range(count)]
    return grid_figure([cells[row] for row in rows], [""] * across, [""] * count, [texts[row] for row in rows])


def matches_figure(a: Tensor, b: Tensor, matches: Matches, names: tuple[str, str], text: str = "") -> Figure:
    """Two images (3, H, W) side by side with their best buddies as dots; matched dots have one color."""
    ratios = [image.shape[-1] / image.shape[-2] for image in (a, b)]
    height = 9.0 / sum(ratios)
    figure = Figure((9.4, height + 0.7), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=ratios)
    for image, axis, name in zip((a, b), axes, names, strict=True):
        _bare(axis)
        _show(axis, image)
        axis.set_title(name, fontsize=9)
    draw_matches(figure, (axes[0], axes[1]), matches, (_size(a), _size(b)))
    if text:
        figure.supxlabel(text, fontsize=9)
    return figure


def draw_matches(
    figure: Figure,
    axes: tuple[Axes, Axes],
    matches: Matches,
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Dots on two images already drawn, colored by their place in the first; lines between the most similar."""
    pixels = matches.pixels(sizes).numpy()
    colors = _place_colors(pixels[:, 0] / np.array(sizes[0]))
    for side, axis in enumerate(axes):
        axis.scatter(pixels[:, side, 1], pixels[:, side, 0], s=26, c=colors, edgecolors="white", linewidths=0.6)
    for (start, end), color in zip(pixels[:LINES], colors, strict=False):
        line = ConnectionPatch(
            start[::-1], end[::-1], "data", "data", axesA=axes[0], axesB=axes[1], color=color, linewidth=0.9, alpha=0.8
        )
        figure.add_artist(line)


def explanation_figure(
    structure: Tensor, appearance: Tensor, output: Tensor, explanation: Explanation, name: str = ""
) -> Figure:
    """Why an output looks as it does, in one image; the images are (3, H, W) in [0, 1].

    Above: structure with appearance and their best buddies, and the output. Below: where the structure loss sits,
    and how far the [CLS] token is from the appearance's, layer by layer, before (structure) and now (output).
    """
    figure = Figure((10, 6.6), dpi=DPI, layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    first, second, third = top.subplots(1, 3)
    heat_axis, bars = bottom.subplots(1, 2, width_ratios=(1, 2))
    for axis, image, title in (
        (first, structure, "structure"),
        (second, appearance, "appearance"),
        (third, output, "output"),
    ):
        _bare(axis)
        _show(axis, image)
        axis.set_title(title, fontsize=10)
    first.set_xlabel("dots of one color: best buddies", fontsize=8)
    matches = explanation.matches
    draw_matches(figure, (first, second), matches, (_size(structure), _size(appearance)))

    _bare(heat_axis)
    height, width = _size(output)
    _show(heat_axis, output.mean(0, keepdim=True).expand(3, -1, -1))
    heat = heat_axis.imshow(
        explanation.structure_map.numpy(), cmap="inferno", alpha=0.7, extent=(0, width, height, 0), vmin=0
    )
    heat_axis.set_title(f"structure loss by patch (mean {explanation.structure_loss:.3g})", fontsize=10)
    bottom.colorbar(heat, ax=heat_axis, shrink=0.8).ax.tick_params(labelsize=8)

    layers = np.arange(len(explanation.cls_distance))
    bars.bar(layers - 0.2, explanation.cls_distance_before.numpy(), 0.4, color="0.75", label="structure to appearance")
    bars.bar(layers + 0.2, explanation.cls_distance.numpy(), 0.4, color="tab:blue", label="output to appearance")
    bars.set_title("distance of the [CLS] token from the appearance image's (1 - cosine)", fontsize=10)
    bars.set_xlabel("layer", fontsize=9)
    bars.set_xticks(layers)
    bars.tick_params(labelsize=8)
    bars.legend(fontsize=8)
    figure.suptitle("\n".join(filter(None, (name, explanation.strength.text))), fontsize=10)
    return figure


def _heat_map(values: Tensor, image: Tensor) -> Tensor:
    """Values (h, w) as a heat map over `image` (3, H, W) at a figure's size, brightest at their maximum."""
    heat = torch.from_numpy(colormaps["inferno"]((values / values.max()).numpy())[..., :3]).permute(2, 0, 1).float()
    gray = TF.resize(image.mean(0, keepdim=True), list(_thumbnail_size(image)), antialias=True)
    return 0.75 * upsample_map(heat, _size(gray)) + 0.25 * gray


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _show(axis: Axes, image: Tensor) -> None:
    """Draw an image (3, H, W), reduced to what a figure can show, in coordinates of its own pixels."""
    height, width = _size(image)
    reduced = TF.resize(image.detach().cpu(), list(_thumbnail_size(image)), antialias=True)
    axis.imshow(reduced.permute(1, 2, 0).clamp(0, 1).numpy(), extent=(0, width, height, 0))


def _thumbnail_size(image: Tensor) -> tuple[int, int]:
    """Height and width at which an image (..., H, W) is drawn: its own, or so that the longer is `THUMBNAIL_SIDE`."""
    factor = min(1.0, THUMBNAIL_SIDE / max(image.shape[-2:]))
    height, width = (max(1, round(side * factor)) for side in image.shape[-2:])
    return height, width


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _place_colors(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places (N, 2) in [0, 1] to RGB: hue goes round the image's center."""
    y, x = (places - 0.5).T
    hues: NDArray[np.float64] = colormaps["hsv"]((np.arctan2(y, x) / (2 * np.pi)) % 1)[:, :3]
    return hues
