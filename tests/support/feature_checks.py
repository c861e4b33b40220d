"""What the tests of splice_ff.vit.features ask for and how they compare it."""

import torch

FACETS = ("queries", "keys", "values")
EVERYTHING = {"cls": True, "queries": [0, -1], "keys": [0, -1], "values": [0, -1], "tokens": [0, -1]}
FAMILIES = {
    # fewer layers and pixels than published, all else as published
    "dino": ("vit_small_patch16_224.dino", {"img_size": 64}),
    "dinov2": ("vit_small_patch14_dinov2.lvd142m", {"img_size": 56}),
    "dinov2_reg": ("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 56}),
    "dinov3": ("vit_small_patch16_dinov3.lvd1689m", {"img_size": 64}),
    "clip": ("vit_base_patch16_clip_quickgelu_224.openai", {"img_size": 64}),
    "eva02": ("eva02_tiny_patch14_224.mim_in22k", {"img_size": 56}),
}


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
