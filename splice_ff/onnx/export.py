"""A one-shot model as three or four ONNX graphs with dynamic sizes, for `splice_ff.onnx.runner` and for browsers.

| file | inputs | output |
|---|---|---|
| `encode.onnx` | `vit_input` (1, 3, h, w): the appearance image as the ViT sees it | `tokens` (1, M, C) |
| `paint.onnx` | `structure` (1, 3, H, W), multiples of the stride; its `vit_input`; `tokens` | `output` (1, 3, H, W) |
| `upsample.onnx` | `output` and `structure` (1, 3, H, W); `full` (1, 3, H', W') | `image` (1, 3, H', W') |

Where color maps lie in a bilateral grid (see `splice_ff.networks.bilateral_grid`), the last two change and a fourth
paints, so that the network works at low resolution and large images are painted a band of rows at a time:

| file | inputs | output |
|---|---|---|
| `paint.onnx` | as above | `pixels` (1, 3, H, W) and `grid` (1, N, h, w) |
| `upsample.onnx` | as above, with `pixels` for `output` | `image`, as above |
| `slice.onnx` | `structure` and `pixels` (1, 3, H, W); `grid`; `rows` (H,) and `columns` (W,) in cells | `output` |

All images are float32 in [0, 1], RGB. `model.json` holds what a runner needs to know besides.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

import splice_ff
from splice_ff.errors import InputError
from splice_ff.networks.bilateral_grid import centers, recolor
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.onnx.files import CARD, FORMATS
from splice_ff.utils.extras import need
from splice_ff.utils.files import write_file
from splice_ff.utils.resize import enlarge_along_edges, guided_upsample
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import PositionInterpolation

OPSET = 18
"""The first with everything the graphs use; browsers' onnxruntime knows it."""


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
    patch = max(model.backbone.patch_size)
    unet = model.generator.unet
    stride, has_grid = unet.stride, unet.guide is not None
    image = torch.rand(1, 3, 8 * stride, 6 * stride)
    vit_input = torch.rand(1, 3, 7 * patch, 5 * patch)
    encode = _Encode(model, backbone).eval()
    with torch.no_grad():
        tokens = encode(vit_input)
    painted = ("pixels", "grid") if has_grid else ("output",)
    upsample: nn.Module = _Upsample(enlarge_along_edges if has_grid else guided_upsample)
    graphs: dict[str, tuple[nn.Module, Mapping[str, Tensor], Sequence[str]]] = {
        "encode": (encode, {"vit_input": vit_input}, ("tokens",)),
        "paint": (
            _Paint(model, backbone).eval(),
            {"structure": image, "vit_input": vit_input, "tokens": tokens, "strength": torch.tensor(1.0)},
            painted,
        ),
        "upsample": (
            upsample,  # a tensor of its own for each input: one given twice would be traced as one
            {"output": image.clone(), "structure": image, "full": torch.rand(1, 3, 200, 150)},
            ("image",),
        ),
    }
    if has_grid:
        h, w = (side // unet.cell for side in image.shape[-2:])
        inputs = {
            "structure": torch.rand(1, 3, 30, 50),
            "pixels": torch.rand(1, 3, 30, 50),
            "grid": torch.rand(1, unet.color_affine.out_channels, h, w),
            "rows": centers(30, h, image.device),
            "columns": centers(50, w, image.device),
        }
        graphs["slice"] = (_Slice(model).eval(), inputs, ("output",))
    layout = next(name for name, kinds in FORMATS.items() if set(kinds) == set(graphs))
    files = []
    for name in FORMATS[layout]:
        files.append(folder / f"{name}.onnx")
        _export(*graphs[name], files[-1], precision)
    card = {
        "format": layout,
        "splice_ff": splice_ff.__version__,
        "precision": precision,
        "model_sha256": model.fingerprint,
        "backbone": {"name": model.backbone.name, "fingerprint": model.backbone.fingerprint, "patch": patch},
        "vit_size": model.config.vit_size,
        "size": model.config.size,
        "stride": stride,
        **({"cell": unet.cell} if has_grid else {}),
        "tokens": list(tokens.shape[1:]),
    }
    write_file(folder / CARD, (json.dumps(card, indent=1) + "\n").encode())
    return [*files, folder / CARD]


class _Encode(nn.Module):
    """Appearance images as the ViT sees them to appearance tokens."""

    def __init__(self, model: SpliceFF, backbone: ViTFeatures) -> None:
        super().__init__()
        self.generator, self.backbone = model.generator, backbone

    def forward(self, vit_input: Tensor) -> Tensor:
        encoding = self.generator.encode_images(self.backbone, vit_input)
        return self.generator.appearance_tokens(encoding)


class _Paint(nn.Module):
    """Structure images, as the UNet and as the ViT see them, appearance tokens and the share of the change that is made
    (0 to 1), to output images, or to changes."""

    def __init__(self, model: SpliceFF, backbone: ViTFeatures) -> None:
        super().__init__()
        self.generator, self.backbone = model.generator, backbone

    def forward(
        self, structure: Tensor, vit_input: Tensor, tokens: Tensor, strength: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        features = self.generator.encode_images(self.backbone, vit_input).structure_features
        if self.generator.unet.guide is None:
            return self.generator.paint(structure, features, tokens, strength=strength)
        change = self.generator.unet.change(structure, features, tokens).times(strength)
        return change.pixels, change.grid


class _Slice(nn.Module):
    """A band of structure images and what is to be done to it, to output images."""

    def __init__(self, model: SpliceFF) -> None:
        super().__init__()
        self.guide = model.generator.unet.guide

    def forward(self, structure: Tensor, pixels: Tensor, grid: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return recolor(structure, grid, pixels, self.guide, rows, columns)


class _Upsample(nn.Module):
    """Outputs or changes at the working size to the size of the full structure image."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, output: Tensor, structure: Tensor, full: Tensor) -> Tensor:
        return self.function(output, structure, full)


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
        patches = _bicubic(down, native[0], offset) @ patches @ _bicubic(across, native[1], offset).T
        return torch.cat([positions[:, :prefix], rearrange(patches, "d h w -> 1 (h w) d")], 1)


def _bicubic(rows: Tensor, native: int, offset: Tensor) -> Tensor:
    """The (n, native) matrix of DINO's interpolation to n = len(rows) places: bicubic, borders repeated.

    Keys' kernel (1981) with a = -0.75, as torch has it; `offset` is what DINO adds to the target size.
    """
    a = -0.75
    at = (rows + 0.5) * native / (rows[-1] + 1 + offset) - 0.5
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


def _export(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], file: Path, precision: str
) -> None:
    """Trace one graph with free heights and widths, and write it, whole or not at all."""
    import onnx

    free = torch.export.Dim.DYNAMIC
    sides = {4: {2: free, 3: free}, 1: {0: free}}  # images and maps; places of rows and columns
    shapes = {name: sides.get(value.ndim, {}) for name, value in inputs.items()}
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own business
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        traced = Path(scratch) / "graph.onnx"
        try:
            torch.onnx.export(
                module, tuple(inputs.values()), str(traced), dynamo=True, input_names=list(inputs),
                output_names=list(outputs), dynamic_shapes=tuple(shapes.values()), opset_version=OPSET,
                external_data=False, verbose=False,
            )  # fmt: skip
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
        graph = onnx.load(traced)
    strip_metadata(graph)
    if precision == "fp16":
        halve_weights(graph)
    write_file(file, graph.SerializeToString())


def strip_metadata(graph: Any) -> None:
    """Remove the exporter's metadata: stack traces, with folders of this machine; up to a megabyte."""
    nodes, values = graph.graph.node, (*graph.graph.value_info, *graph.graph.input, *graph.graph.output)
    for part in (graph, graph.graph, *nodes, *values, *graph.graph.initializer):
        part.ClearField("metadata_props")


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
