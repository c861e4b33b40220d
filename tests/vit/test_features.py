from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.feature_checks import EVERYTHING, FACETS, assert_same, images, relative_error

from splice_ff.vit.features import self_similarity


def test_the_golden_file_is_the_published_one():
    shared = Path(__file__).parents[3] / "shared" / "golden" / "splice_reference.safetensors"
    if not shared.is_file():
        pytest.skip(f"{shared} is not here to compare with")
    copy = Path(__file__).parents[1] / "golden" / shared.name
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


@pytest.mark.parametrize("size", [(112, 127), (119, 120), (118, 122)])
def test_sides_lose_what_no_patch_covers(golden_backbone, size):
    batch = images(2, 3, *size)
    wanted = {"cls": True, "tokens": [-1], "keys": [0]}
    found = golden_backbone(batch, **wanted)
    assert found.grid == (14, 15)
    assert_same(found, golden_backbone(batch[..., :112, :120], **wanted), tolerance=1e-6)


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
