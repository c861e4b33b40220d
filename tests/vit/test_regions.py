"""Features of a region: those of an image of which the ViT never saw the other patches."""

import pytest
import timm
import torch
import torch.nn.functional as F
from support.feature_checks import EVERYTHING, FAMILIES, assert_same, images, relative_error
from support.tiny_vit import randomize

from splice_ff.vit.features import LEAST_KEPT, ViTFeatures, kept_patches, self_similarity

MIXED = ("vit_small_patch16_rope_mixed_224.naver_in1k", {"img_size": 64})


def half(batch, *, left=True):
    """Masks of the left or right half of (B, 3, H, W)."""
    masks = torch.zeros(len(batch), 1, *batch.shape[2:])
    middle = batch.shape[-1] // 2
    masks[..., slice(None, middle) if left else slice(middle, None)] = 1
    return masks


@pytest.fixture
def any_family(families):
    def get(name):
        if name != "rope_mixed":
            return families(name)
        return ViTFeatures(randomize(timm.create_model(MIXED[0], num_classes=0, depth=3, **MIXED[1])))

    return get


@pytest.mark.parametrize("family", [*FAMILIES, "rope_mixed"])
def test_only_the_region_is_seen(any_family, family):
    """Whatever is outside changes nothing; patches move nowhere (positions and rotations are theirs); shapes fit."""
    backbone = any_family(family)
    down, across = backbone.patch_size
    batch = images(2, 3, 4 * down, 6 * across)
    masks = torch.cat([half(batch[:1]), half(batch[:1], left=False)])
    found = backbone(batch, keep=masks, **EVERYTHING)
    assert found.tokens[2].shape[1] == backbone.prefix_tokens + 12 and found.grid == (4, 6)
    assert_same(found, backbone(batch * masks, keep=masks, **EVERYTHING), tolerance=1e-6)
    assert relative_error(found.cls, backbone(batch, cls=True).cls) > 1e-3
    # before any attention, tokens are those of the whole image: prefix tokens, then the kept patches in their places
    whole = backbone(batch, queries=[0]).queries[0][0]
    kept = torch.arange(24).view(4, 6)[:, :3].flatten() + backbone.prefix_tokens
    picked = whole[:, torch.cat([torch.arange(backbone.prefix_tokens), kept])]
    assert relative_error(found.queries[0][0], picked) < 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, "rope_mixed"])
def test_dropping_is_the_attention_that_masks(any_family, family, monkeypatch):
    """Against an independent way: all tokens stay, and attention to those outside is forbidden."""
    backbone = any_family(family)
    down, across = backbone.patch_size
    batch = images(1, 3, 4 * down, 6 * across)
    found = backbone(batch, cls=True, tokens=[-1], keep=half(batch))
    allowed = torch.cat([torch.ones(backbone.prefix_tokens), (torch.arange(24) % 6 < 3).float()]).bool()
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **_: attend(q, k, v, attn_mask=allowed[None, None, None])
    )
    for block in backbone.vit.blocks:
        monkeypatch.setattr(block.attn, "fused_attn", True)
    monkeypatch.setattr("splice_ff.vit.features.prefers_plain_attention", lambda *_: False)
    masked = backbone(batch, cls=True, tokens=[-1])
    assert relative_error(found.cls, masked.cls) < 1e-5
    assert relative_error(found.tokens[2], masked.tokens[2][:, allowed]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_all_kept_is_no_mask(families, family):
    backbone = families(family)
    batch = images(2, 3, 3 * backbone.patch_size[0], 4 * backbone.patch_size[1] + 3)
    found, whole = (backbone(batch, **EVERYTHING, **k) for k in ({"keep": torch.ones(1, 1, *batch.shape[2:])}, {}))
    assert torch.equal(found.cls, whole.cls) and torch.equal(found.keys[2], whole.keys[2])
    assert torch.equal(found.tokens[2], whole.tokens[2])


def test_regions_of_different_sizes(tiny_backbone):
    backbone, batch = tiny_backbone(), images(3, 3, 48, 64)
    masks = half(batch)
    masks[1] = 1
    found = backbone(batch, cls=True, keep=masks).cls
    for i in range(3):
        alone = backbone(batch[i : i + 1], cls=True, keep=masks[i : i + 1]).cls
        assert relative_error(found[i], alone[0]) < 1e-5
    for wanted in ({"keys": [-1]}, {"cls": True, "tokens": [0]}):
        with pytest.raises(ValueError, match=r"\[24, 48, 24\]"):
            backbone(batch, keep=masks, **wanted)


def test_one_mask_serves_a_batch(tiny_backbone):
    backbone, batch = tiny_backbone(), images(2, 3, 48, 64)
    one = backbone(batch, keep=half(batch[:1]), **EVERYTHING)
    assert_same(one, backbone(batch, keep=half(batch), **EVERYTHING), tolerance=1e-9)


def test_the_self_similarity_of_a_region_is_that_of_its_tokens(tiny_backbone):
    backbone, batch = tiny_backbone(), images(1, 3, 48, 64)
    found = backbone(batch, keys=[0], keep=half(batch))
    inside = torch.cat([torch.zeros(1), 1 + torch.arange(48).view(6, 8)[:, :4].flatten()]).long()
    whole = self_similarity(backbone(batch, keys=[0]).keys[0])  # the first layer's keys know of no others
    assert relative_error(found.self_similarity(), whole[:, inside][:, :, inside]) < 1e-5


def test_gradients_stay_inside(tiny_backbone):
    backbone, batch = tiny_backbone(), images(2, 3, 48, 64).requires_grad_()
    found = backbone(batch, cls=True, keys=[-1], keep=half(batch))
    (found.cls.square().sum() + found.self_similarity().square().sum()).backward()
    gradient = batch.grad.abs().sum((0, 1))
    assert (gradient[:, :32] > 0).float().mean() > 0.99 and not gradient[:, 32:].any()


def test_a_region_smaller_than_the_least_takes_the_patches_furthest_inside():
    batch = images(1, 3, 48, 48)
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 17:24, 17:24] = 1  # most of patch (2, 2)
    mask[..., 24:26, 16:24] = 0.5  # a little of (3, 2)
    kept = kept_patches(mask, batch, (8, 8))
    assert kept.sum() == LEAST_KEPT and kept[0, 2 * 6 + 2] and kept[0, 3 * 6 + 2]


def test_images_with_fewer_patches_than_the_least(tiny_backbone):
    batch = images(1, 3, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :8] = 1
    assert kept_patches(mask, batch, (8, 8)).sum() == 4


@pytest.mark.parametrize("shape", [(1, 48, 64), (2, 3, 48, 64), (3, 1, 48, 64), (2, 1, 6, 8)])
def test_masks_of_other_shapes(tiny_backbone, shape):
    with pytest.raises(ValueError, match="masks of"):
        tiny_backbone()(images(2, 3, 48, 64), cls=True, keep=torch.ones(shape))


def test_an_empty_mask(tiny_backbone):
    masks = torch.ones(2, 1, 48, 64)
    masks[1] = 0
    with pytest.raises(ValueError, match="empty"):
        tiny_backbone()(images(2, 3, 48, 64), cls=True, keep=masks)
