import inspect

import pytest
import timm
import torch
import torch.nn.functional as F
from support.feature_checks import EVERYTHING, FACETS, FAMILIES, assert_same, images, relative_error
from timm.layers import Attention
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock

from splice_ff.vit.features import ViTFeatures

PREFIX_TOKENS = {"dinov2_reg": 5, "dinov3": 5}


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_of_every_family(families, family):
    backbone = families(family)
    down, across = backbone.patch_size
    found = backbone(images(2, 3, 3 * down, 5 * across), **EVERYTHING)
    width, tokens = backbone.vit.embed_dim, PREFIX_TOKENS.get(family, 1) + 15
    heads = width // 64
    assert backbone.depth == 3 and found.grid == (3, 5)
    assert found.cls.shape == (2, 3, width)
    assert found.tokens[2].shape == (2, tokens, width)
    assert found.keys[0].shape == found.queries[2].shape == found.values[2].shape == (2, heads, tokens, 64)
    assert all(torch.isfinite(found.tokens[i]).all() for i in (0, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shortcut_changes_nothing_in_any_family(families, family):
    backbone = families(family)
    batch = images(2, 3, 4 * backbone.patch_size[0], 3 * backbone.patch_size[1])
    short, whole = backbone(batch, cls=True, keys=[-1]), backbone(batch, cls=True, keys=[-1], tokens=[-1])
    assert relative_error(short.cls[:, -1], whole.cls[:, -1]) < 1e-5
    assert torch.equal(whole.cls[:, -1], whole.tokens[2][:, 0])
    assert relative_error(short.keys[2], whole.keys[2]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_timms_own(families, family):
    """At the native size, at which timm and this package agree about position embeddings."""
    backbone = families(family)
    batch = images(2, 3, 4 * backbone.patch_size[0], 4 * backbone.patch_size[1])
    mine = backbone(batch, tokens=[1, 2]).tokens
    normalized = (batch - backbone.mean) / backbone.std
    theirs = backbone.vit.forward_intermediates(normalized, indices=[1, 2], output_fmt="NLC", intermediates_only=True)
    for layer, patches in zip((1, 2), theirs, strict=True):
        assert relative_error(mine[layer][:, -16:], patches) < 1e-5


def test_dinov3_has_timms_tokens_at_other_sizes(families):
    """Its rotary embeddings depend on the grid."""
    backbone = families("dinov3")
    batch = images(1, 3, 96, 48)
    normalized = (batch - backbone.mean) / backbone.std
    theirs = backbone.vit.forward_intermediates(normalized, indices=1, output_fmt="NLC", intermediates_only=True)[0]
    assert relative_error(backbone(batch, tokens=[-1]).tokens[2][:, -18:], theirs) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_facets_are_what_the_attention_uses(families, family, monkeypatch):
    """Queries and keys before q/k norm and rotation; values as they are averaged."""
    backbone, seen = families(family), {}
    attention, attend = backbone.vit.blocks[1].attn, F.scaled_dot_product_attention
    values = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **o: values.append(v) or attend(q, k, v, **o)
    )
    hooks = [
        attention.q_norm.register_forward_pre_hook(lambda _, inputs: seen.update(queries=inputs[0])),
        attention.k_norm.register_forward_pre_hook(lambda _, inputs: seen.update(keys=inputs[0])),
    ]
    down, across = backbone.patch_size
    found = backbone(images(2, 3, 2 * down, 3 * across), queries=[1], keys=[1], values=[1], tokens=[1])
    for hook in hooks:
        hook.remove()
    seen["values"] = values[1]
    for facet in FACETS:
        assert relative_error(getattr(found, facet)[1], seen[facet]) < 1e-5, facet


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_rotary_embeddings_fit_any_grid(randomized, fused, mixed):
    """Some models (EVA-02) keep them for their native grid only."""
    arguments = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6, "num_classes": 0}
    arguments |= {"use_rot_pos_emb": True, "qkv_fused": fused, "use_abs_pos_emb": False}
    arguments |= {"rope_type": "mixed"} if mixed else {}
    kept, free = (ViTFeatures(randomized(Eva(**arguments, dynamic_img_size=d))) for d in (False, True))
    if mixed:
        free.vit.rope.load_state_dict(kept.vit.rope.state_dict())
    for size in ((48, 48), (48, 64), (32, 40), (40, 32), (48, 48)):
        batch = images(1, 3, *size)
        normalized = (batch - free.mean) / free.std
        theirs = free.vit.forward_intermediates(normalized, indices=1, output_fmt="NLC", intermediates_only=True)[0]
        for backbone in (kept, free):
            assert relative_error(backbone(batch, tokens=[-1]).tokens[1][:, 1:], theirs) < 1e-5, size


def test_keys_shared_by_several_heads():
    if "num_kv_heads" not in inspect.signature(Eva).parameters:
        pytest.skip("this timm's Eva has no grouped-query attention")
    vit = Eva(img_size=48, patch_size=8, embed_dim=48, depth=1, num_heads=6, num_classes=0, use_rot_pos_emb=True,
              qkv_fused=False, attn_type="rope", num_kv_heads=2)  # fmt: skip
    found = ViTFeatures(vit)(images(1, 3, 48, 48), keys=[0], queries=[0], values=[0])
    assert found.queries[0].shape == (1, 6, 37, 8) and found.keys[0].shape == found.values[0].shape == (1, 2, 37, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True},
        {"init_values": 0.5},
        {"qkv_bias": False},
        {"pre_norm": True},
        {"reg_tokens": 2},
        {"reg_tokens": 2, "no_embed_class": True},
        {"depth": 5},
        {"patch_size": (8, 12)},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_variants_of_the_plain_vit(tiny_backbone, changes):
    backbone = tiny_backbone(**changes)
    native = images(2, 3, 48, 48)
    short, whole = backbone(native, cls=True, keys=[-1]), backbone(native, cls=True, keys=[-1], tokens=[-1])
    assert relative_error(short.cls, whole.cls) < 1e-5
    normalized = (native - backbone.mean) / backbone.std
    theirs = backbone.vit.forward_intermediates(normalized, indices=1, output_fmt="NLC", intermediates_only=True)[0]
    deepest = whole.tokens[backbone.depth - 1]
    assert relative_error(deepest[:, -theirs.shape[1] :], theirs) < 1e-5
    assert backbone(images(1, 3, 40, 72), cls=True).cls.shape == (1, backbone.depth, 48)


class DoubleAttention(Attention):
    """An attention that the shortcut knows nothing of."""

    def forward(self, x, *rest, **options):
        return 2 * super().forward(x, *rest, **options)


@pytest.mark.parametrize("kind", ["gated", "unknown"])
def test_other_attention_takes_the_long_way(tiny_vit, randomized, work, kind):
    if kind == "gated" and "gated" not in inspect.signature(Attention).parameters:
        pytest.skip("this timm has no gated attention")
    make = {"gated": lambda **a: Attention(**a, gated=True), "unknown": DoubleAttention}[kind]
    vit = tiny_vit()
    vit.blocks[-1].attn = randomized(make(dim=48, num_heads=6, qkv_bias=True)).eval()
    backbone, batch = ViTFeatures(vit), images(1, 3, 48, 48)
    short, whole = backbone(batch, cls=True), backbone(batch, cls=True, tokens=[-1])
    assert relative_error(short.cls, whole.cls) < 1e-6
    assert work.queries == [37] * 6


def test_without_a_class_token(tiny_backbone):
    backbone = tiny_backbone(class_token=False, global_pool="avg")
    batch = images(1, 3, 48, 56)
    with pytest.raises(ValueError, match=r"\[CLS\]"):
        backbone(batch, cls=True, keys=[-1])
    assert backbone(batch, keys=[-1]).keys[2].shape == (1, 6, 42, 8)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("resnet10t", {}),
        ("test_convnext", {}),
        ("beit_base_patch16_224", {"depth": 1}),  # relative positions
        ("deit_tiny_distilled_patch16_224", {"depth": 1}),  # another prefix token
        ("vit_tiny_r_s16_p8_224", {"depth": 1}),  # convolutional stem
        ("vit_base_patch16_xp_224", {"depth": 1}),  # parallel blocks
        ("vit_tiny_patch16_224", {"depth": 1, "block_fn": ResPostBlock}),  # keys not from norm1's output
    ],
)
def test_other_models_are_refused_at_once(model, changes):
    with pytest.raises(TypeError, match="not a plain ViT"):
        ViTFeatures(timm.create_model(model, num_classes=0, **changes))


def test_name_of_a_backbone_made_by_hand(tiny_backbone):
    assert tiny_backbone().name == "VisionTransformer"
    assert tiny_backbone(patch_size=(8, 12)).patch_size == (8, 12)


def test_images_are_normalized(tiny_vit):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    batch = images(1, 3, 48, 48)
    by_hand = torch.stack([(batch[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    expected = ViTFeatures(tiny_vit(), (0, 0, 0), (1, 1, 1))(by_hand, cls=True)
    assert_same(ViTFeatures(tiny_vit(), mean, std)(batch, cls=True), expected)
