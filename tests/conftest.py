"""What several test modules share: tiny ViTs and folders with their weights, and the original code's numbers."""

import logging
import os
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch.nn.functional as F
from safetensors.torch import load_file
from support.checkpoint_files import CONFIG, checkpoint_folder
from support.feature_checks import FAMILIES
from support.tiny_vit import make_vit, randomize
from timm.models.vision_transformer import VisionTransformer

from splice_ff.vit.features import ViTFeatures

GOLDEN = Path(__file__).parent / "golden" / "splice_reference.safetensors"


@pytest.fixture(autouse=True)
def loud_again():
    """What a command's `--quiet` silences, which is its whole process, speaks again after the test."""
    yield
    logging.disable(logging.NOTSET)
    for library in ("DATASETS", "HUB"):
        os.environ.pop(f"HF_{library}_DISABLE_PROGRESS_BARS", None)


@pytest.fixture(autouse=True)
def _runtime(monkeypatch):
    """`transfer` paints with torch, and exports nothing in the background."""
    monkeypatch.setenv("SPLICE_FF_RUNTIME", "torch")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def families():
    """Architectures of `FAMILIES` by name, made once, with random weights. Shared: do not change them."""
    made = {}

    def family(name):
        if name not in made:
            timm_name, changes = FAMILIES[name]
            vit = timm.create_model(timm_name, num_classes=0, depth=3, **changes)
            made[name] = ViTFeatures(randomize(vit))
        return made[name]

    return family


@pytest.fixture
def work(monkeypatch):
    """Counts calls of the modules it watches, and lists the query lengths of all attention."""

    class Work(Counter):
        queries: list = []  # noqa: RUF012

        def watch(self, vit):
            for i, block in enumerate(vit.blocks):
                parts = {"block": block, "attn.proj": block.attn.proj, "mlp": block.mlp}
                for name, module in parts.items():
                    module.register_forward_hook(lambda *_, key=f"{name} {i}": self.update([key]))

    work = Work()
    work.queries = []
    attend = F.scaled_dot_product_attention

    def counted(query, *rest, **options):
        work.queries.append(query.shape[-2])
        return attend(query, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return work


@pytest.fixture
def vit_state(tiny_vit):
    """Tensors of a random ViT with the architecture of `checkpoint_files.CONFIG`."""
    return tiny_vit(depth=2).state_dict()


@pytest.fixture
def vit_fingerprint(tiny_vit):
    """Of those weights."""
    return ViTFeatures(tiny_vit(depth=2)).fingerprint


@pytest.fixture
def vit_folder(tmp_path, vit_state):
    """A checkpoint folder with them."""
    return checkpoint_folder(tmp_path / "tiny", CONFIG, vit_state)


@pytest.fixture
def blank_folder(tmp_path, tiny_vit):
    """A checkpoint folder with other weights, for `--weights FILE` to replace."""
    return checkpoint_folder(tmp_path / "blank", CONFIG, tiny_vit(seed=9, depth=2).state_dict())
