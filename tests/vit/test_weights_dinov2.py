import pytest
import torch
from safetensors.torch import save_file
from support.checkpoint_files import CONFIG, checkpoint_folder, refusal

from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.weights import load_backbone

KEY = "blocks.1.attn.qkv.weight"


def dinov2_layout(vit):
    """Tensors of a ViT with registers as DINOv2's authors publish them: [CLS] has a position of its own."""
    state = dict(vit.state_dict())
    position = torch.randn(1, 1, vit.embed_dim)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - position
    state["mask_token"] = torch.zeros(1, vit.embed_dim)
    return state


@pytest.fixture
def registers(tmp_path, tiny_vit):
    """A folder for a ViT with registers, and the ViT whose weights shall go there."""
    changes = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5, "depth": 2}
    path = checkpoint_folder(tmp_path / "registers", CONFIG | changes, tiny_vit(seed=3, **changes).state_dict())
    return path, tiny_vit(**changes)


def test_dinov2s_own_layout(registers, tmp_path):
    folder, vit = registers
    torch.save(dinov2_layout(vit), tmp_path / "dinov2.pth")
    backbone, expected = load_backbone(str(folder), tmp_path / "dinov2.pth"), ViTFeatures(vit)
    for key, tensor in backbone.vit.state_dict().items():
        assert torch.allclose(tensor, vit.state_dict()[key], atol=1e-6), key
    assert backbone.fingerprint != load_backbone(str(folder)).fingerprint
    images = torch.rand(1, 3, 48, 48)
    backbone.mean, backbone.std = expected.mean, expected.std
    assert torch.allclose(backbone(images, cls=True).cls, expected(images, cls=True).cls, atol=1e-4)


def test_dinov2s_own_layout_without_registers(blank_folder, tmp_path, vit_state, vit_fingerprint):
    save_file(vit_state | {"mask_token": torch.zeros(1, 48)}, tmp_path / "dinov2.safetensors")
    assert load_backbone(str(blank_folder), tmp_path / "dinov2.safetensors").fingerprint == vit_fingerprint


@pytest.mark.parametrize("key", ["register_tokens", "cls_token", "pos_embed", KEY])
def test_a_missing_tensor_in_dinov2s_layout(registers, tmp_path, key):
    folder, vit = registers
    state = dinov2_layout(vit)
    del state[key]
    torch.save(state, tmp_path / "file.pth")
    timms_name = {"register_tokens": "reg_token"}.get(key, key)
    assert f"'{timms_name}'" in refusal(folder, tmp_path / "file.pth")


def test_dinov2s_layout_of_another_width(registers, tmp_path):
    folder, vit = registers
    state = dinov2_layout(vit)
    state["cls_token"] = torch.ones(1, 1, 40)
    torch.save(state, tmp_path / "file.pth")
    refusal(folder, tmp_path / "file.pth")
