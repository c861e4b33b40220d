import torch

from splice_ff.vit.features import ViTFeatures


def test_fingerprint_survives_storage_in_half_precision(tiny_vit):
    vit = tiny_vit()
    for parameter in vit.parameters():
        parameter.data = parameter.data.half().float()  # what a file in fp16 can hold
    original = ViTFeatures(vit).fingerprint
    stored = {key: tensor.half() for key, tensor in vit.state_dict().items()}
    again = tiny_vit(seed=1)
    assert ViTFeatures(again).fingerprint != original
    again.load_state_dict(stored)
    assert ViTFeatures(again).fingerprint == original
    assert ViTFeatures(again).half().fingerprint == original
    assert len(original) == 64 and set(original) <= set("0123456789abcdef")


def test_fingerprint_sees_one_value(tiny_vit):
    vit = tiny_vit()
    original = ViTFeatures(vit).fingerprint
    with torch.no_grad():
        vit.blocks[2].mlp.fc2.bias[7] += 1e-6
    assert ViTFeatures(vit).fingerprint != original


def test_fingerprint_is_of_what_is_used(tiny_vit):
    """Not of heads, which are left as they happen to be made."""
    whole, bare = tiny_vit(num_classes=5, global_pool="map"), tiny_vit(global_pool="token")
    bare.load_state_dict(whole.state_dict(), strict=False)
    assert any("attn_pool" in key for key in whole.state_dict())
    assert ViTFeatures(whole).fingerprint == ViTFeatures(bare).fingerprint


def test_fingerprint_sees_shapes(tiny_backbone):
    """The same numbers in the same order, but of patches that lie, or stand."""
    lying, standing = tiny_backbone(patch_size=(8, 12)), tiny_backbone(patch_size=(12, 8))
    one, other = lying.vit.state_dict(), standing.vit.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[k].flatten(), other[k].flatten()) for k in one)
    assert lying.fingerprint != standing.fingerprint


def test_fingerprint_sees_names(tiny_vit, monkeypatch):
    vit = tiny_vit()
    original, state = ViTFeatures(vit).fingerprint, vit.state_dict()
    monkeypatch.setattr(vit, "state_dict", lambda: {key.replace("norm1", "norm0"): t for key, t in state.items()})
    assert ViTFeatures(vit).fingerprint != original


def test_fingerprint_of_a_copy_asked_first(tiny_backbone):
    assert tiny_backbone().with_matmuls_in(torch.bfloat16).fingerprint == tiny_backbone().fingerprint
