"""A one-shot model as two ONNX graphs that take images of any size, for `splice_ff.onnx.runner` and for browsers.

| file | inputs | outputs |
|---|---|---|
| `encode.onnx` | `image` (1, 3, H, W); `size` (1,) | `tokens` (1, M, C) and `features` (1, D, h, w) |
| `paint.onnx` | `structure` (1, 3, H, W); `size`; its `features`; `tokens`; `strength` () | `image` (1, 3, H, W) |

Images are float32 in [0, 1], RGB. `size`, int64, is the shorter side, in pixels, at which the network works; 0 for an
appearance image, which is encoded as it is. `strength` is the share of the change that is made. Torch traces the
networks; what is around them is in `splice_ff.onnx.graphs`. `model.json` holds what a runner needs to know besides.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

import splice_ff
from splice_ff.errors import InputError
from splice_ff.networks.bilateral_grid import centers, recolor
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.onnx.files import CARD, FORMAT, GRAPHS
from splice_ff.onnx.graphs import OPSET, encode_text, join, paint_text
from splice_ff.utils.extras import need
from splice_ff.utils.files import write_file
from splice_ff.utils.resize import local_affine
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import PositionInterpolation


def export_model(model: SpliceFF, folder: Path, *, precision: str = "fp32") -> list[Path]:
    """Write the graphs and model.json.

    Args:
        model: on the CPU, in float32.
        folder: made if it is missing; existing files of these names are replaced.
        precision: "fp32", or "fp16" for weights of half the size (inputs, outputs and sums stay float32).

    Returns:
        The files written, model.json last: a folder that has it is whole.

    Raises:
        InputError: unknown precision, a missing package, or a backbone whose position embeddings are not learned ones
            that are interpolated as DINO's are.
    """
    need("onnx", "onnxscript", extra="onnx")
    if precision not in ("fp32", "fp16"):
        raise InputError(f"unknown precision '{precision}'. Known: fp32, fp16")
    backbone = _traceable(model.backbone)
    patch, unet = max(model.backbone.patch_size), model.generator.unet
    image = torch.rand(1, 3, 8 * unet.stride, 6 * unet.stride)
    vit_input = torch.rand(1, 3, 7 * patch, 5 * patch)
    encode, paint = _Encode(model, backbone).eval(), _Paint(model).eval()
    with torch.no_grad():
        tokens, features = encode(vit_input)
        pixels, grid = paint(image, features, tokens, torch.tensor(1.0))
        h, w = (side // unet.cell for side in image.shape[-2:])
        rows, columns = centers(30, h, image.device), centers(50, w, image.device)
        maps = _Fit(unet.cell)(pixels, image, columns)
    networks = {
        "encode": _trace(encode, {"vit_input": vit_input}),
        "paint": _trace(
            paint, {"structure": image, "features": features, "tokens": tokens, "strength": torch.tensor(1.0)}
        ),
        "fit": _trace(_Fit(unet.cell), {"pixels": pixels, "working": image, "columns": columns}),
        "finish": _trace(
            _Finish(model).eval(),
            {
                "structure": torch.rand(1, 3, 30, 50),
                "maps": maps,
                "grid": grid,
                "rows": rows,
                "columns": columns,
            },
        ),
    }
    texts = {
        "encode": encode_text(model.config.vit_size, patch),
        "paint": paint_text(unet.stride, unet.cell),
    }
    files = []
    for name in GRAPHS:
        graph = join(texts[name], networks)
        if precision == "fp16":
            halve_weights(graph)
        files.append(folder / f"{name}.onnx")
        write_file(files[-1], graph.SerializeToString())
    card = {
        "format": FORMAT,
        "splice_ff": splice_ff.__version__,
        "precision": precision,
        "model_sha256": model.fingerprint,
        "backbone": {"name": model.backbone.name, "fingerprint": model.backbone.fingerprint},
        "size": model.config.size,
        "tokens": list(tokens.shape[1:]),
    }
    write_file(folder / CARD, (json.dumps(card, indent=1) + "\n").encode())
    return [*files, folder / CARD]


class _Encode(nn.Module):
    """Images as the ViT sees them to appearance tokens, of an appearance, and to structure features, of a structure."""

    def __init__(self, model: SpliceFF, backbone: ViTFeatures) -> None:
        super().__init__()
        self.generator, self.backbone = model.generator, backbone

    def forward(self, vit_input: Tensor) -> tuple[Tensor, Tensor]:
        encoding = self.generator.encode_images(self.backbone, vit_input)
        return self.generator.appearance_tokens(encoding), encoding.structure_features


class _Paint(nn.Module):
    """Padded structure images at the working size to a change's pixels and grid, or to painted images and the grid."""

    def __init__(self, model: SpliceFF) -> None:
        super().__init__()
        self.unet = model.generator.unet

    def forward(self, structure: Tensor, features: Tensor, tokens: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        grid, pixels, _ = self.unet.change(structure, features, tokens).times(strength)
        if self.unet.guide is not None:
            return pixels, grid
        rows, columns = (centers(n, n / self.unet.cell, structure.device) for n in structure.shape[-2:])
        return recolor(structure, grid, pixels, None, rows, columns), grid


class _Fit(nn.Module):
    """What `splice_ff.utils.resize.enlarge_along_edges` reads at full size, stacked, as wide as the full image.

    Pixels and the structure image, both (1, 3, h, w), and places of columns (W,) in cells to (1, 9 + 3 + 3, h, W).
    """

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, pixels: Tensor, working: Tensor, columns: Tensor) -> Tensor:
        matrix, offset = local_affine(pixels, working)
        rest = pixels - (torch.einsum("bijhw,bihw->bjhw", matrix, working) + offset)
        at, width = columns * self.cell - 0.5, working.shape[-1]
        affine = torch.cat([matrix.flatten(1, 2), offset], 1)
        return torch.cat([affine @ _linear(at, width).T, rest @ _cubic(at, width).T], 1)


class _Finish(nn.Module):
    """A band of full-size structure images, with the places of its rows and columns in cells, to the band painted."""

    def __init__(self, model: SpliceFF) -> None:
        super().__init__()
        self.guide, self.cell = model.generator.unet.guide, model.generator.unet.cell

    def forward(self, structure: Tensor, maps: Tensor, grid: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        at, height = rows * self.cell - 0.5, maps.shape[-2]
        affine = _linear(at, height) @ maps[:, :12]
        values = affine[:, 9:] + _cubic(at, height) @ maps[:, 12:]
        for i in range(3):
            values = values + affine[:, 3 * i : 3 * i + 3] * structure[:, i : i + 1]
        if self.guide is None:
            return values.clamp(0, 1)
        return recolor(structure, grid, values, self.guide, rows, columns)


class _TraceableViT(ViTFeatures):
    """A ViT whose position embeddings are interpolated by two matrix products, which a graph can hold for any size."""

    def _position_embeddings(self, grid: tuple[int, int], pixels: Sequence[int]) -> Tensor:
        positions = self.vit.pos_embed
        prefix = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        native = self.vit.patch_embed.grid_size
        down, across = (torch.arange(n) for n in grid)
        is_native = (down[-1] + 1 == native[0]) & (across[-1] + 1 == native[1])
        offset = torch.where(is_native, 0.0, PositionInterpolation().offset)
        patches = rearrange(positions[0, prefix:], "(h w) d -> d h w", h=native[0])
        places = [
            (rows + 0.5) * n / (rows[-1] + 1 + offset) - 0.5 for rows, n in zip((down, across), native, strict=True)
        ]
        patches = _cubic(places[0], native[0]) @ patches @ _cubic(places[1], native[1]).T
        return torch.cat([positions[:, :prefix], rearrange(patches, "d h w -> 1 (h w) d")], 1)


def _linear(at: Tensor, native: int) -> Tensor:
    """The (n, native) matrix of linear interpolation at n places; beyond the outermost pixels it is constant."""
    return (1 - (at.clamp(0, native - 1)[:, None] - torch.arange(native)).abs()).clamp(min=0)


def _cubic(at: Tensor, native: int) -> Tensor:
    """The (n, native) matrix of cubic interpolation at n places, borders repeated.

    Keys' kernel (1981) with a = -0.75, as torch has it.
    """
    a = -0.75
    before = at.floor()
    columns = torch.arange(native)
    weights = torch.zeros(())
    for step in range(-1, 3):
        x = (at - before - step).abs()
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        column = (before + step).clamp(0, native - 1)
        weights = weights + torch.where(x <= 1, near, far)[:, None] * (column[:, None] == columns)
    return weights


@torch.no_grad()
def _traceable(backbone: ViTFeatures) -> ViTFeatures:
    """A copy for tracing, once it is known to compute what the original does."""
    twin = copy.deepcopy(backbone).cpu().float()
    twin.__class__ = _TraceableViT
    down, across = backbone.patch_size
    image = torch.rand(1, 3, 5 * down, 3 * across, generator=torch.Generator().manual_seed(0))
    try:
        ours, theirs = (vit(image, cls=True).cls for vit in (twin, backbone))
        if torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
            return twin
    except (AttributeError, RuntimeError, TypeError):  # no learned positions
        pass
    raise InputError(f"{backbone.name}: only ViTs whose position embeddings are interpolated as DINO's can be exported")


def _trace(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """One graph with free heights and widths."""
    free = torch.export.Dim.DYNAMIC
    sides = {4: {2: free, 3: free}, 1: {0: free}}  # images and maps; places of rows and columns
    shapes = [sides.get(value.ndim, {}) for value in inputs.values()]
    values = [value.clone() for value in inputs.values()]  # one tensor given twice would be traced as one
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own business
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module, tuple(values), dynamo=True, input_names=list(inputs), dynamic_shapes=tuple(shapes),
                opset_version=OPSET, verbose=False,
            )  # fmt: skip
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
    assert program is not None
    return program.model_proto


def halve_weights(graph: Any) -> None:
    """Store large float32 weights as float16, each followed by a cast: half the bytes, sums as before."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    kept: Sequence[Any] = list(graph.graph.initializer)
    casts = []
    del graph.graph.initializer[:]
    for weight in kept:
        if weight.data_type == onnx.TensorProto.FLOAT and np.prod(weight.dims) >= 1024:
            half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), f"{weight.name}.fp16")
            casts.append(onnx.helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT))
            graph.graph.initializer.append(half)
        else:
            graph.graph.initializer.append(weight)
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*casts, *nodes])
