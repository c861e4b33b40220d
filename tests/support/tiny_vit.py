"""Tiny ViTs with random weights of a size at which every one matters."""

import torch
from timm.models.vision_transformer import VisionTransformer


@torch.no_grad()
def randomize(model, seed=0):
    """Give every parameter a size at which it matters: fresh biases are 0 and fresh layer scales 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.ndim == 1 and not name.endswith("bias")
        parameter.copy_(1 + 0.2 * noise if is_scale else noise * (0.2 if parameter.ndim == 1 else 0.08))
    return model


def make_vit(seed=0, **changes):
    arguments = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 6, "num_classes": 0}
    return randomize(VisionTransformer(**arguments | changes), seed).eval()
