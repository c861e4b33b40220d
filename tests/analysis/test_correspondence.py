"""Best buddies, whether a match is weak, and the [CLS] token's attention."""

import pytest
import torch
from timm.models.eva import Eva

from splice_ff.analysis.attention import cls_attention
from splice_ff.analysis.correspondence import Matches, best_buddies, match, match_strength
from splice_ff.errors import InputError
from splice_ff.vit.features import ViTFeatures


def noise(seed=0, height=48, width=64):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_best_buddies_find_a_permutation():
    random = torch.Generator().manual_seed(0)
    a, order = torch.randn(12, 32, generator=random), torch.randperm(12, generator=random)
    matches = best_buddies(a, 7 * a[order], ((3, 4), (4, 3)))  # cosine: length does not count
    assert matches.patches.shape == (12, 2, 2)
    rows_a, rows_b = (matches.patches[:, i, 0] * width + matches.patches[:, i, 1] for i, width in ((0, 4), (1, 3)))
    assert order[rows_b].equal(rows_a)
    assert matches.similarity.allclose(torch.ones(12))


def test_only_mutual_neighbors_count_and_the_most_similar_come_first():
    a = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [0.3, 1.0]])
    matches = best_buddies(a, b, ((1, 3), (1, 2)))
    assert matches.patches.tolist() == [[[0, 0], [0, 0]], [[0, 2], [0, 1]]]  # the second of a has no buddy
    assert matches.similarity[0] == 1 and matches.similarity[1] < 1


def test_pixels_are_the_patches_centres():
    matches = Matches(torch.tensor([[[0, 1], [2, 0]]]), torch.ones(1), ((3, 4), (4, 2)))
    assert matches.pixels(((30, 40), (80, 60))).tolist() == [[[5.0, 15.0], [50.0, 15.0]]]


def test_an_image_matches_itself_patch_by_patch(tiny_backbone):
    matches = match(tiny_backbone(), noise(), noise(), size=48)
    assert matches.grids == ((6, 8), (6, 8))
    assert len(matches.similarity) == 48
    assert matches.patches[:, 0].equal(matches.patches[:, 1])


def test_images_of_different_sizes_and_another_layer(tiny_backbone):
    matches = match(tiny_backbone(), noise(0), noise(1, 90, 60), layer=0, size=48)
    assert matches.grids == ((6, 8), (9, 6))
    assert 0 < len(matches.similarity) <= 48
    with pytest.raises(IndexError):
        match(tiny_backbone(), noise(0), noise(1), layer=-4, size=48)


def test_strength_takes_one_pass(tiny_backbone, monkeypatch):
    backbone, batches = tiny_backbone(), []
    forward = type(backbone).forward
    monkeypatch.setattr(type(backbone), "forward", lambda s, x, **k: (batches.append(len(x)), forward(s, x, **k))[1])
    assert -1 <= match_strength(backbone, noise(0), noise(1, 90, 60)).similarity <= 1
    assert batches == [2]


def test_an_image_is_no_weak_match_with_itself(tiny_backbone):
    strength = match_strength(tiny_backbone(), noise(), noise())
    assert strength.similarity == pytest.approx(1, abs=1e-5)
    assert not strength.is_weak and strength.text.startswith("these two share parts (")


@pytest.mark.parametrize(("name", "weak"), [("vit_s14_robust", True), ("dino_vits8", False)])
def test_only_backbones_that_were_measured_warn(tiny_backbone, monkeypatch, name, weak):
    monkeypatch.setattr("splice_ff.analysis.correspondence.F.cosine_similarity", lambda *a, **k: torch.tensor(0.6))
    monkeypatch.setattr(ViTFeatures, "name", name)
    strength = match_strength(tiny_backbone(), noise(), noise(1))
    assert strength.is_weak == weak and ("colors may land anywhere" in strength.text) == weak


def probabilities(block, run):
    """The attention that timm computes in a block while `run()`: (B, heads, T, T)."""
    block.attn.fused_attn, seen = False, []
    hook = block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    run()
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"reg_tokens": 2}])
def test_attention_is_timms(tiny_backbone, changes):
    backbone = tiny_backbone(**changes)
    found = cls_attention(backbone, noise(), size=48)
    expected = probabilities(backbone.vit.blocks[-1], lambda: backbone(noise(), tokens=[-1]))
    assert found.shape == (1, 6, 6, 8)
    assert found.flatten(2).allclose(expected[:, :, 0, backbone.prefix_tokens :], atol=1e-5)


def test_attention_with_rotary_embeddings_is_timms(randomized):
    shape = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    backbone = ViTFeatures(randomized(Eva(**shape, use_rot_pos_emb=True, ref_feat_shape=(6, 6), dynamic_img_size=True)))
    found = cls_attention(backbone, noise(), layer=0, size=48)
    expected = probabilities(backbone.vit.blocks[0], lambda: backbone(noise(), tokens=[0]))
    assert found.flatten(2).allclose(expected[:, :, 0, backbone.prefix_tokens :], atol=1e-5)


def test_without_a_cls_token_there_is_no_attention_and_yet_a_verdict(tiny_backbone):
    backbone = tiny_backbone(class_token=False, global_pool="avg")
    with pytest.raises(InputError, match="no \\[CLS\\] token"):
        cls_attention(backbone, noise(), size=48)
    assert match_strength(backbone, noise(), noise()).similarity == pytest.approx(1, abs=1e-5)
