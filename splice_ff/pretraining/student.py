"""The ViT that is trained: made or loaded, run with gradients, written as a folder that `load_backbone` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerScale
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from splice_ff.errors import InputError
from splice_ff.pretraining.config import StudentConfig
from splice_ff.utils.files import atomic_write
from splice_ff.utils.tensor_files import write_tensors
from splice_ff.vit.features import UNUSED, ViTFeatures
from splice_ff.vit.spec import LossWeights
from splice_ff.vit.weights import load_backbone

ARCHITECTURE = "timm.models.VisionTransformer"


class Student(nn.Module):
    """A trainable ViT whose forward pass is the one that `ViTFeatures` has after training.

    So other sizes than its own get their position embeddings in the same way, and what the losses of this project
    will read later (keys, [CLS] tokens) is what was trained.
    """

    def __init__(self, features: ViTFeatures, teachers: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.features, self.teachers = features, teachers
        self.unfreeze()

    @property
    def vit(self) -> Any:
        """The timm model."""
        return self.features.vit

    def unfreeze(self) -> Student:
        """Give every weight that is used a gradient; a moving average of another student comes without."""
        for name, parameter in self.vit.named_parameters():
            parameter.requires_grad_(not name.startswith(UNUSED))
        return self

    def attend_by_matmuls(self) -> Student:
        """Attention in plain products: on a CPU, a fused kernel's backward pass takes a quarter of a step."""
        for block in self.vit.blocks:
            block.attn.fused_attn = False
        return self

    def train(self, mode: bool = True) -> Student:
        """Also the ViT's stochastic depth, which `ViTFeatures` by itself keeps off."""
        self.training = mode
        self.vit.train(mode)
        return self

    def forward(self, images: Tensor, layers: Iterable[int] = (-1,)) -> dict[int, Tensor]:
        """Block outputs (B, T, D) of images (B, 3, H, W) in [0, 1], by layer from 0 on; the deepest after its norm."""
        tokens = dict(self.features(images, tokens=layers).tokens)
        last = self.features.depth - 1
        if last in tokens:
            tokens[last] = self.vit.norm(tokens[last])
        return tokens


def make_student(settings: StudentConfig) -> Student:
    """A new ViT, or a known one to go on with.

    Raises:
        InputError: `start_from` cannot be loaded, or is no plain ViT with a [CLS] token.
    """
    if settings.start_from is None:
        vit = VisionTransformer(
            img_size=settings.image_size, patch_size=settings.patch_size, embed_dim=settings.width,
            depth=settings.depth, num_heads=settings.heads, num_classes=0, drop_path_rate=settings.drop_path,
        )  # fmt: skip
        return Student(ViTFeatures(vit))
    source = load_backbone(settings.start_from, settings.start_weights)
    twin = _plain_twin(source, settings.drop_path)
    if twin is None:
        raise InputError(
            f"{settings.start_from}: cannot be trained further; only plain ViTs with one [CLS] token can, as DINO's are"
        )
    mean, std = (t.flatten().tolist() for t in (source.mean, source.std))
    return Student(ViTFeatures(twin, mean, std), source.spec.teachers if source.spec else ())


def architecture(vit: Any) -> dict[str, Any]:
    """The arguments that make a timm `VisionTransformer` of the same shape."""
    block = vit.blocks[0]
    scaled = {"init_values": 1e-5} if isinstance(block.ls1, LayerScale) else {}  # their values come with the weights
    return {
        "img_size": list(vit.patch_embed.img_size),
        "patch_size": vit.patch_embed.patch_size[0],
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / vit.embed_dim,
        "qkv_bias": block.attn.qkv.bias is not None,
        "num_classes": 0,
        **scaled,
    }


@torch.no_grad()
def center_keys(features: ViTFeatures, images: Tensor) -> None:
    """Move the deepest keys so that their mean over the patches of images (B, 3, H, W) in [0, 1] is 0.

    Attention stays as it is: a constant in all keys adds the same to all logits of a query, and softmax does not see
    it. The cosines of keys, which the structure loss compares, then show what sets places apart.
    """
    last = features.depth - 1
    means = [features(batch, keys=[last]).keys[last][:, :, features.prefix_tokens :].mean(2)
             for batch in images.split(32)]  # fmt: skip
    bias = features.vit.blocks[last].attn.qkv.bias
    bias[features.width : 2 * features.width] -= torch.cat(means).mean(0).flatten()


@torch.no_grad()
def _plain_twin(source: ViTFeatures, drop_path: float) -> VisionTransformer | None:
    """The same ViT made from `architecture` alone; None if that says too little to compute the same."""
    try:
        twin = VisionTransformer(**architecture(source.vit), drop_path_rate=drop_path).eval()
        state = {k: t for k, t in source.vit.state_dict().items() if not k.startswith(UNUSED)}
        twin.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError):  # other parts, other names of parts
        return None
    side = max(source.patch_size) * 3
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    last = source.depth - 1
    mean, std = (t.flatten().tolist() for t in (source.mean, source.std))
    ours, theirs = (f(image, tokens=[last]).tokens[last] for f in (ViTFeatures(twin, mean, std), source))
    return twin if torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3) else None


def save_backbone(
    folder: Path,
    student: Student,
    card: Mapping[str, Any],
    scales: LossWeights | None = None,
    teachers: Iterable[str] = (),
) -> None:
    """Write config.json, model.safetensors (half precision) and README.md, as `load_backbone(folder)` reads them.

    Args:
        folder: made if it is not there.
        student: whose ViT is written.
        card: facts for the README, by name.
        scales: factors on the loss weights that suit this backbone's features.
        teachers: names of the networks that it learned from, which may not judge it.

    Raises:
        CheckpointError: weights that are not finite in half precision, or a place that takes no file.
    """
    features = student.features
    config = {
        "architecture": ARCHITECTURE,
        **architecture(student.vit),
        "mean": [round(v, 6) for v in features.mean.flatten().tolist()],
        "std": [round(v, 6) for v in features.std.flatten().tolist()],
    }
    if scales is not None:
        config["loss_scales"] = {name: getattr(scales, name) for name in ("structure", "appearance", "identity")}
    if known := sorted(set(teachers)):
        config["teachers"] = known
    state = {k: t for k, t in student.vit.state_dict().items() if not k.startswith(UNUSED)}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", {k: t.half() for k, t in state.items()}, {"format": "pt"})
    text = _card(config, sum(t.numel() for t in state.values()), card)
    atomic_write(
        folder / "config.json", lambda file: file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    )
    atomic_write(folder / "README.md", lambda file: file.write_text(text, encoding="utf-8"))


def _card(config: Mapping[str, Any], parameters: int, facts: Mapping[str, Any]) -> str:
    """The README: what was recorded, nothing else."""
    height, width = config["img_size"]
    rows = {
        "architecture": f"timm `VisionTransformer`: patch {config['patch_size']}, width {config['embed_dim']}, "
        f"{config['depth']} layers, {config['num_heads']} heads, {parameters / 1e6:.1f} M parameters",
        "made for": f"{height}x{width} px",
        "weights on disk": "fp16",
        **facts,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
    use = "A vision transformer for `splice-ff … --backbone FOLDER`, this folder. It is not DINO's published one."
    return f"# A backbone trained with splice-ff\n\n{use}\n\n{table}\n"
