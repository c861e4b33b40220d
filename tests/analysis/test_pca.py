"""Principal components as colors: right, the same every time, and one meaning per color where they are joint."""

import pytest
import torch
import torch.nn.functional as F

from splice_ff.analysis.pca import (
    foreground,
    pca,
    principal_components,
    self_similarity_descriptors,
    spread_layers,
)
from splice_ff.analysis.recipes import PCA_FACETS
from splice_ff.vit.features import self_similarity


def photo(seed=0, height=48, width=64):
    """A blocky random image (1, 3, height, width)."""
    small = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (height, width), mode="nearest")


def test_components_are_those_of_the_singular_value_decomposition():
    rows = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13) + 5
    basis = principal_components(rows)
    expected = torch.linalg.svd(rows - rows.mean(0)).Vh[:3]
    assert (basis.components * expected).sum(1).abs().allclose(torch.ones(3), atol=1e-4)
    variances = basis.project(rows).var(0)
    assert variances[0] > variances[1] > variances[2]


def test_the_sign_does_not_depend_on_that_of_the_data():
    rows = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    components = principal_components(rows).components
    assert components.allclose(principal_components(-rows).components, atol=1e-5)
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


def test_self_similarity_has_the_components_of_the_whole_matrix():
    keys = torch.randn(1, 2, 30, 8, generator=torch.Generator().manual_seed(0))
    rows = keys[0].transpose(0, 1).flatten(1)
    (short,) = self_similarity_descriptors([rows])
    assert short.shape == (30, 16)
    full = self_similarity(keys)[0][1:]  # rows of the patches; columns of all tokens
    ours, theirs = (principal_components(d).project(d) for d in (short[1:], full))
    assert (F.cosine_similarity(ours, theirs, dim=0).abs() > 0.999).all()
    assert ours.norm(dim=0).allclose(theirs.norm(dim=0), rtol=1e-3)


def test_joint_self_similarity_is_that_of_all_tokens_of_all_images():
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 6, generator=random), torch.randn(14, 6, generator=random)
    together = torch.cat(self_similarity_descriptors([a, b]))
    units = F.normalize(torch.cat([a, b]), dim=-1)
    matrix = units @ units.T
    assert (together @ together.T).allclose(matrix @ matrix.T, atol=1e-4)


def test_images_have_a_pixel_for_each_patch_and_are_the_same_again(tiny_backbone):
    images = [photo(0), photo(1, 64, 48)]
    first, again = (pca(tiny_backbone(), images, PCA_FACETS, [0, -1], size=48) for _ in range(2))
    assert [set(found) for found in first] == [{(facet, n) for facet in PCA_FACETS for n in (0, 2)}] * 2
    for grid, found, same in zip([(6, 8), (8, 6)], first, again, strict=True):
        for key, image in found.items():
            assert image.shape == (3, *grid)
            assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
            assert image.equal(same[key])


def test_one_pass_for_all_facets_and_layers_of_an_image(tiny_backbone, monkeypatch):
    backbone, calls = tiny_backbone(), []
    forward = type(backbone).forward
    monkeypatch.setattr(type(backbone), "forward", lambda *a, **k: (calls.append(k), forward(*a, **k))[1])
    pca(backbone, [photo()], PCA_FACETS, [0, 1, 2], mask=True, size=48)
    assert len(calls) == 1


def test_joint_gives_equal_patches_equal_colors(tiny_backbone):
    image = photo()
    turned, other = image.clone(), photo(3)
    for joint in (True, False):
        alone = pca(tiny_backbone(), [image, turned, other], ["keys"], [-1], joint=joint, size=48)
        assert alone[0]["keys", 2].equal(alone[1]["keys", 2])
    pair = pca(tiny_backbone(), [image, other], ["keys"], [-1], joint=True, size=48)
    single = pca(tiny_backbone(), [image], ["keys"], [-1], size=48)
    assert not pair[0]["keys", 2].allclose(single[0]["keys", 2], atol=0.05)  # its basis is also the other's


def test_the_foreground_is_the_side_away_from_the_border(tiny_backbone):
    image = torch.full((1, 3, 64, 64), 0.1)
    image[..., 16:48, 16:48] = 0.8 + 0.2 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone = tiny_backbone()
    backbone.vit.pos_embed.zero_()  # position must not speak
    inside = foreground(backbone(image, tokens=[0]), 0)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert inside.equal(expected)
    image = pca(backbone, [image], ["keys"], [0], mask=True, size=64)[0]["keys", 0]
    assert image[:, ~inside].max() == 0 and image[:, inside].max() > 0


def test_four_layers_by_default(tiny_backbone):
    assert spread_layers(12) == [2, 5, 8, 11] and spread_layers(3) == [0, 1, 2] and spread_layers(1) == [0]
    (maps,) = pca(tiny_backbone(), [photo()], ["keys"], size=48)
    assert [layer for _, layer in maps] == [0, 1, 2]


def test_an_unknown_layer_is_an_error(tiny_backbone):
    with pytest.raises(IndexError, match="3 layers"):
        pca(tiny_backbone(), [photo()], ["keys"], [3], size=48)
