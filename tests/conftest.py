"""What several test modules share: tiny ViTs, and the numbers that the original code computed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from splice_ff.backbone import ViTFeatures

GOLDEN = Path(__file__).parent / "data" / "splice_reference.safetensors"


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


@pytest.fixture
def randomized():
    """Fill a model's parameters with seeded noise: `randomized(model, seed=0)`."""
    return randomize


@pytest.fixture
def tiny_vit():
    """Make a random 3-layer timm ViT of width 48, 6 heads, patch 8, 48 px: `tiny_vit(seed=0, **changes)`."""
    return make_vit


@pytest.fixture
def tiny_backbone():
    """The same as `ViTFeatures`."""
    return lambda seed=0, **changes: ViTFeatures(make_vit(seed, **changes))


@pytest.fixture(scope="session")
def golden():
    """Tensors of tests/data/splice_reference.safetensors, by name; see the README there."""
    return load_file(GOLDEN)


@pytest.fixture(scope="session")
def golden_backbone(golden):
    """The ViT that they were computed with. Shared: do not change it."""
    vit = VisionTransformer(img_size=112, patch_size=8, embed_dim=48, depth=12, num_heads=6, num_classes=0)
    vit.load_state_dict({k.removeprefix("weights."): t for k, t in golden.items() if k.startswith("weights.")})
    return ViTFeatures(vit)


@pytest.fixture(scope="session")
def golden_image(golden):
    """An image of that file as (1, 3, H, W) in [0, 1]: `golden_image("square.image")`."""
    return lambda name: golden[name].permute(2, 0, 1)[None].float() / 255
