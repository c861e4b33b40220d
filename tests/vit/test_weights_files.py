import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.checkpoint_files import prefixed
from torch import nn

from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import LossWeights
from splice_ff.vit.weights import load_backbone, read_state


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(blank_folder, tmp_path, vit_state, vit_fingerprint, prefix, suffix):
    assert load_backbone(str(blank_folder)).fingerprint != vit_fingerprint
    file = tmp_path / f"mine{suffix}"
    extra = {"head.mlp.0.weight": torch.ones(3)}  # DINO's projection head, in some files
    content = prefixed(prefix, vit_state) | extra
    save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
    backbone = load_backbone(str(blank_folder), file)
    assert backbone.fingerprint == vit_fingerprint
    assert load_backbone(str(blank_folder), str(file)).fingerprint == vit_fingerprint
    assert backbone.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])  # all else is the folder's


def test_weights_from_a_folder(blank_folder, vit_folder, vit_fingerprint):
    assert load_backbone(str(blank_folder), vit_folder).fingerprint == vit_fingerprint


def test_weights_for_a_timm_name(tmp_path, randomized):
    """Needs no network; mean and standard deviation are timm's for the name."""
    vit = randomized(timm.create_model("test_vit", num_classes=0))
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone("test_vit.r160_in1k", tmp_path / "weights.safetensors")
    assert backbone.fingerprint == ViTFeatures(vit).fingerprint
    assert backbone.name == "test_vit.r160_in1k" and backbone.spec.loss_scales == LossWeights(1, 1, 1)
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [0.5, 0.5, 0.5]


def test_weights_in_half_precision(blank_folder, tmp_path, vit_state):
    halves = {key: tensor.half() for key, tensor in vit_state.items()}
    save_file(halves, tmp_path / "half.safetensors")
    backbone = load_backbone(str(blank_folder), tmp_path / "half.safetensors")
    for key, tensor in backbone.vit.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, halves[key].float())


def full_checkpoint(teacher, student):
    """What DINO's training program saves: both networks, optimizer, epoch and the program's arguments."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    head = {"head.mlp.0.weight": torch.ones(4, 4), "head.last_layer.weight_g": torch.ones(4, 1)}
    return {
        "student": prefixed("module.backbone.", student) | prefixed("module.", head),
        "teacher": prefixed("backbone.", teacher) | head,
        "optimizer": optimizer.state_dict(),
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=8, lr=0.0005, local_crops_scale=(0.05, 0.25)),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def test_full_dino_checkpoint_gives_the_teacher(blank_folder, tmp_path, vit_state, vit_fingerprint, tiny_vit):
    torch.save(full_checkpoint(vit_state, tiny_vit(seed=5, depth=2).state_dict()), tmp_path / "dino.pth")
    assert load_backbone(str(blank_folder), tmp_path / "dino.pth").fingerprint == vit_fingerprint


def test_full_checkpoint_of_distributed_training(blank_folder, tmp_path, vit_state, vit_fingerprint):
    student = {key: torch.zeros_like(tensor) for key, tensor in vit_state.items()}
    content = {"student": prefixed("module.", student), "teacher": prefixed("module.backbone.", vit_state)}
    torch.save(content | {"extra": 1}, tmp_path / "dino.pth")
    assert load_backbone(str(blank_folder), tmp_path / "dino.pth").fingerprint == vit_fingerprint


@pytest.mark.parametrize("key", ["teacher", "state_dict", "model"])
def test_weights_under_a_usual_key(tmp_path, vit_state, key):
    torch.save({key: prefixed("module.", vit_state), "epoch": 3}, tmp_path / "file.pth")
    assert read_state(tmp_path / "file.pth").keys() == vit_state.keys()
