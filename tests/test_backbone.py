import inspect
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from splice_ff.backbone import ViTFeatures, self_similarity

FACETS = ("queries", "keys", "values")
EVERYTHING = {"cls": True, "queries": [0, -1], "keys": [0, -1], "values": [0, -1], "tokens": [0, -1]}
FAMILIES = {
    # fewer layers and pixels than published, all else as published
    "dino": ("vit_small_patch16_224.dino", {"img_size": 64}),
    "dinov2": ("vit_small_patch14_dinov2.lvd142m", {"img_size": 56}),
    "dinov2_reg": ("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 56}),
    "dinov3": ("vit_small_patch16_dinov3.lvd1689m", {"img_size": 64}),
    "clip": ("vit_base_patch16_clip_224.openai", {"img_size": 64}),
    "eva02": ("eva02_tiny_patch14_224.mim_in22k", {"img_size": 56}),
}
PREFIX_TOKENS = {"dinov2_reg": 5, "dinov3": 5}


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours, reference):
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def assert_same(features, others, tolerance=1e-5):
    """Both hold the same features, up to rounding."""
    assert features.grid == others.grid
    assert (features.cls is None) == (others.cls is None)
    if features.cls is not None:
        assert relative_error(features.cls, others.cls) < tolerance
    for facet in (*FACETS, "tokens"):
        mine, theirs = getattr(features, facet), getattr(others, facet)
        assert mine.keys() == theirs.keys()
        for layer in mine:
            assert relative_error(mine[layer], theirs[layer]) < tolerance, (facet, layer)


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


# ------------------------------------------------------------------------------ the original code's numbers


def test_the_golden_file_is_the_published_one():
    shared = Path(__file__).parents[2] / "shared" / "golden" / "splice_reference.safetensors"
    if not shared.is_file():
        pytest.skip(f"{shared} is not here to compare with")
    copy = Path(__file__).parent / "data" / shared.name
    assert copy.read_bytes() == shared.read_bytes()


@pytest.mark.parametrize("shape", ["square", "nonsquare"])
def test_all_features_are_the_original_codes(golden, golden_backbone, golden_image, shape):
    image = golden_image(f"{shape}.image")
    layer = [11]
    found = golden_backbone(image, cls=True, tokens=layer, keys=layer, queries=layer, values=layer)
    assert found.grid == (image.shape[-2] // 8, image.shape[-1] // 8)
    for i in range(12):
        assert relative_error(found.cls[0, i], golden[f"{shape}.cls_per_layer"][i]) < 1e-4, i
    for facet in ("tokens", "keys", "queries", "values"):
        assert relative_error(getattr(found, facet)[11][0], golden[f"{shape}.{facet}_layer11"]) < 1e-4, facet
    similarity = golden[f"{shape}.keys_self_similarity_layer11"]
    assert relative_error(found.self_similarity()[0], similarity) < 1e-4


@pytest.mark.parametrize("shape", ["square", "nonsquare"])
def test_the_shortcut_gives_the_original_codes_features(golden, golden_backbone, golden_image, shape, work):
    """The losses ask for no more than this, and then the last block computes token 0 only."""
    found = golden_backbone(golden_image(f"{shape}.image"), cls=True, keys=[-1])
    assert work.queries[-1] == 1 and len(set(work.queries[:-1])) == 1 and work.queries[0] > 1
    for i in range(12):
        assert relative_error(found.cls[0, i], golden[f"{shape}.cls_per_layer"][i]) < 1e-4, i
    assert relative_error(found.keys[11][0], golden[f"{shape}.keys_layer11"]) < 1e-4
    similarity = golden[f"{shape}.keys_self_similarity_layer11"]
    assert relative_error(found.self_similarity()[0], similarity) < 1e-4


# -------------------------------------------------------------------------------- what is computed, and what not


def test_a_batch_gives_what_its_samples_give(tiny_backbone):
    backbone, batch = tiny_backbone(), images(3, 3, 40, 64)
    together = backbone(batch, **EVERYTHING)
    assert together.cls.shape == (3, 3, 48) and together.keys[2].shape == (3, 6, 1 + 5 * 8, 8)
    for i in range(3):
        alone = backbone(batch[i : i + 1], **EVERYTHING)
        assert relative_error(together.cls[i], alone.cls[0]) < 1e-5
        for facet in (*FACETS, "tokens"):
            for layer in (0, 2):
                error = relative_error(getattr(together, facet)[layer][i], getattr(alone, facet)[layer][0])
                assert error < 1e-5, (facet, layer)
    assert relative_error(together.cls[0], together.cls[1]) > 1e-2  # the samples do differ


@pytest.mark.parametrize(
    ("wanted", "blocks", "queries"),
    [
        ({}, [], []),
        ({"keys": [0]}, [], []),
        ({"keys": [-1]}, [0, 1], [37, 37]),
        ({"values": [1], "queries": [0]}, [0], [37]),
        ({"tokens": [0]}, [0], [37]),
        ({"tokens": [0], "keys": [1]}, [0], [37]),
        ({"tokens": [1], "keys": [0]}, [0, 1], [37, 37]),
        ({"tokens": [2]}, [0, 1, 2], [37, 37, 37]),
        ({"cls": True}, [0, 1], [37, 37, 1]),
        ({"cls": True, "keys": [-1]}, [0, 1], [37, 37, 1]),
        ({"cls": True, "tokens": [-1]}, [0, 1, 2], [37, 37, 37]),
    ],
)
def test_nothing_beyond_the_deepest_wanted_feature_is_computed(tiny_backbone, work, wanted, blocks, queries):
    """`blocks` run whole; `queries` are the numbers of tokens that attend, layer by layer."""
    backbone = tiny_backbone()
    work.watch(backbone.vit)
    backbone(images(1, 3, 48, 48), **wanted)
    assert [i for i in range(3) if work[f"block {i}"]] == blocks
    assert work.queries == queries
    for i in range(3):
        expected = 1 if i < len(queries) else 0
        assert (work[f"attn.proj {i}"], work[f"mlp {i}"]) == (expected, expected)


def test_tokens_hold_cls_and_facets_go_with_every_other_wish(tiny_backbone):
    backbone, batch = tiny_backbone(), images(2, 3, 48, 56)
    every = range(3)
    whole = backbone(batch, cls=True, tokens=every, keys=every, queries=every, values=every)
    assert torch.equal(whole.cls, torch.stack([whole.tokens[i][:, 0] for i in every], 1))
    for facet in (*FACETS, "tokens"):
        for layer in every:
            alone = getattr(backbone(batch, **{facet: [layer]}), facet)
            assert alone.keys() == {layer}
            assert relative_error(alone[layer], getattr(whole, facet)[layer]) < 1e-5, (facet, layer)


def test_negative_layers_count_from_the_end(tiny_backbone):
    backbone, batch = tiny_backbone(), images(1, 3, 48, 48)
    found = backbone(batch, keys=[-1, 2, -3], tokens=[-2])
    assert found.keys.keys() == {2, 0} and found.tokens.keys() == {1}
    assert_same(found, backbone(batch, keys=[0, 2], tokens=[1]))


@pytest.mark.parametrize("facet", [*FACETS, "tokens"])
@pytest.mark.parametrize("layer", [3, -4])
def test_layers_that_do_not_exist(tiny_backbone, facet, layer):
    with pytest.raises(IndexError, match=rf"layer {layer}: .* 3 layers"):
        tiny_backbone()(images(1, 3, 48, 48), **{facet: [0, layer]})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 48, 48), r"\(3, 48, 48\)"),
        ((1, 1, 48, 48), r"\(1, 1, 48, 48\)"),
        ((1, 4, 48, 48), r"\(1, 4, 48, 48\)"),
        ((1, 3, 7, 48), "smaller than one patch"),
        ((1, 3, 48, 7), "smaller than one patch"),
    ],
)
def test_images_of_impossible_shapes(tiny_backbone, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_backbone()(images(*shape), keys=[0])


def test_one_patch_is_enough(tiny_backbone):
    found = tiny_backbone()(images(1, 3, 8, 15), cls=True, keys=[-1])
    assert found.grid == (1, 1) and found.keys[2].shape == (1, 6, 2, 8)
    assert torch.isfinite(found.cls).all()


@pytest.mark.parametrize("size", [(112, 119), (119, 112), (113, 114)])
def test_sides_lose_what_no_patch_covers(golden_backbone, size):
    batch = images(2, 3, *size)
    wanted = {"cls": True, "tokens": [-1], "keys": [0]}
    found = golden_backbone(batch, **wanted)
    assert found.grid == (14, 14)
    assert_same(found, golden_backbone(batch[..., :112, :112], **wanted), tolerance=1e-6)


def test_self_similarity_is_the_cosine_of_all_heads_together(tiny_backbone):
    found = tiny_backbone()(images(1, 3, 48, 48), keys=[0, 1])
    keys = found.keys[1][0]  # (heads, T, d)
    vectors = [torch.cat([keys[head, t] for head in range(6)]) for t in range(4)]
    expected = torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in vectors]) for a in vectors])
    assert relative_error(found.self_similarity()[0, :4, :4], expected) < 1e-5  # of the deepest layer held
    assert torch.equal(found.self_similarity(0), self_similarity(found.keys[0]))
    assert not torch.equal(found.self_similarity(0), found.self_similarity(1))


def test_self_similarity_is_float32_under_autocast():
    keys = images(1, 2, 9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        similarity = self_similarity(keys.bfloat16())
    assert similarity.dtype == torch.float32
    assert torch.equal(similarity, self_similarity(keys.bfloat16().float()))


# ------------------------------------------------------------------------------------------- gradients and modes


@pytest.mark.parametrize("wanted", [{"keys": [-1]}, {"cls": True}, {"tokens": [-1]}, {"queries": [1], "values": [1]}])
def test_gradients_reach_the_images_and_nothing_else(tiny_backbone, wanted):
    backbone, batch = tiny_backbone(), images(2, 3, 48, 48).requires_grad_()
    found = backbone(batch, **wanted)
    loss = sum(t.square().sum() for facet in (*FACETS, "tokens") for t in getattr(found, facet).values())
    (loss if found.cls is None else loss + found.cls.square().sum()).backward()
    assert all(sample.abs().max() > 0 for sample in batch.grad)
    assert len(list(backbone.parameters())) > 10
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_the_shortcut_has_the_gradient_of_the_whole_block(tiny_backbone):
    backbone, batch = tiny_backbone(), images(1, 3, 48, 48).requires_grad_()
    gradients = []
    for wanted in ({"cls": True, "keys": [-1]}, {"cls": True, "keys": [-1], "tokens": [-1]}):
        found = backbone(batch, **wanted)
        gradients += torch.autograd.grad(found.cls.square().sum() + found.keys[2].square().sum(), batch)
    assert relative_error(*gradients) < 1e-5


def test_it_stays_in_eval_mode(tiny_backbone):
    backbone, batch = tiny_backbone(proj_drop_rate=0.5, pos_drop_rate=0.5), images(1, 3, 48, 48)
    before = backbone(batch, **EVERYTHING)
    nn.Sequential(backbone).train()
    assert backbone.train() is backbone
    assert not any(module.training for module in backbone.modules())
    assert_same(backbone(batch, **EVERYTHING), before, tolerance=1e-9)


def test_no_attention_matrix_is_stored_for_backward(tiny_backbone):
    """They are what makes large inputs run out of memory: T * T * heads numbers a layer."""
    backbone, batch = tiny_backbone(), images(1, 3, 112, 112).requires_grad_()
    attention = (1 + 14 * 14) ** 2 * 6

    def largest_saved():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            backbone(batch, cls=True, keys=[-1])
            backbone(batch, cls=True, tokens=[-1])
        return max(sizes)

    assert 0 < largest_saved() < attention
    for block in backbone.vit.blocks:
        block.attn.fused_attn = False
    assert largest_saved() >= attention  # so the check above would have seen one


# ---------------------------------------------------------------------------------------------- architectures


@pytest.fixture(scope="module")
def families():
    """Each architecture once, with random weights."""
    made = {}

    def family(name):
        from conftest import randomize

        if name not in made:
            timm_name, changes = FAMILIES[name]
            vit = timm.create_model(timm_name, num_classes=0, depth=3, **changes)
            made[name] = ViTFeatures(randomize(vit))
        return made[name]

    return family


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
    normalised = (batch - backbone.mean) / backbone.std
    theirs = backbone.vit.forward_intermediates(normalised, indices=[1, 2], output_fmt="NLC", intermediates_only=True)
    for layer, patches in zip((1, 2), theirs, strict=True):
        assert relative_error(mine[layer][:, -16:], patches) < 1e-5


def test_dinov3_has_timms_tokens_at_other_sizes(families):
    """Its rotary embeddings depend on the grid."""
    backbone = families("dinov3")
    batch = images(1, 3, 96, 48)
    normalised = (batch - backbone.mean) / backbone.std
    theirs = backbone.vit.forward_intermediates(normalised, indices=1, output_fmt="NLC", intermediates_only=True)[0]
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
        normalised = (batch - free.mean) / free.std
        theirs = free.vit.forward_intermediates(normalised, indices=1, output_fmt="NLC", intermediates_only=True)[0]
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
    normalised = (native - backbone.mean) / backbone.std
    theirs = backbone.vit.forward_intermediates(normalised, indices=1, output_fmt="NLC", intermediates_only=True)[0]
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


def test_images_are_normalised(tiny_vit):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    batch = images(1, 3, 48, 48)
    by_hand = torch.stack([(batch[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    expected = ViTFeatures(tiny_vit(), (0, 0, 0), (1, 1, 1))(by_hand, cls=True)
    assert_same(ViTFeatures(tiny_vit(), mean, std)(batch, cls=True), expected)


# ----------------------------------------------------------------------------------- identity and number formats


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


def test_bfloat16_copy(tiny_backbone):
    backbone, batch = tiny_backbone(init_values=0.5), images(2, 3, 48, 64)
    before = {key: tensor.clone() for key, tensor in backbone.vit.state_dict().items()}
    twin = backbone.with_matmuls_in(torch.bfloat16)

    for key, tensor in backbone.vit.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[key])
    rounded = {key for key, tensor in twin.vit.state_dict().items() if tensor.dtype == torch.bfloat16}
    assert rounded == {k for k in before if any(part in k for part in ("proj", "qkv", "fc1", "fc2"))}
    assert twin.fingerprint == backbone.fingerprint

    exact = backbone(batch, **EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        loose = twin(batch, **EVERYTHING)
        short = twin(batch, cls=True, keys=[-1])
    assert loose.keys[2].dtype == torch.bfloat16 and loose.tokens[2].dtype == torch.float32
    assert 0 < relative_error(loose.keys[2].float(), exact.keys[2]) < 0.05
    assert relative_error(loose.tokens[2], exact.tokens[2]) < 0.05
    assert relative_error(short.cls, exact.cls) < 0.05
    assert_same(backbone(batch, **EVERYTHING), exact, tolerance=1e-9)


def test_bfloat16_copy_of_a_rotary_vit(families):
    backbone, batch = families("dinov3"), images(1, 3, 64, 48)
    exact = backbone(batch, cls=True, keys=[-1])
    with torch.autocast("cpu", torch.bfloat16):
        loose = backbone.with_matmuls_in(torch.bfloat16)(batch, cls=True, keys=[-1])
    assert 0 < relative_error(loose.cls, exact.cls) < 0.05
    assert loose.cls.dtype == torch.float32
    assert 0 < relative_error(loose.keys[2].float(), exact.keys[2]) < 0.05


def test_fingerprint_of_a_copy_asked_first(tiny_backbone):
    assert tiny_backbone().with_matmuls_in(torch.bfloat16).fingerprint == tiny_backbone().fingerprint
