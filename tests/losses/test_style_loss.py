"""The style loss: its value, what does not count, where it is taken."""

import pytest
import torch

from splice_ff.losses.splice import Target, encode
from splice_ff.losses.style import style_layers, style_loss, token_statistics
from splice_ff.utils.seeding import seeded_generator
from splice_ff.vit.inputs import ViTInput


def tokens(count=2, length=10, width=6, seed=0):
    return {layer: torch.randn(count, length, width, generator=seeded_generator(seed, layer)) for layer in (1, 3)}


def photo(seed, *shape):
    return torch.rand(1, 3, *(shape or (48, 48)), generator=seeded_generator(seed))


@pytest.fixture
def backbone(tiny_backbone):
    return tiny_backbone()


def test_it_is_the_distance_of_means_and_deviations_in_units_of_the_looks_own():
    ours, theirs, expected = tokens(), tokens(seed=1), 0.0
    for layer in (1, 3):
        for i in range(2):
            a, b = ours[layer][i, 2:], theirs[layer][i, 2:]  # of two tokens that are no patches
            apart = (a.mean(0) - b.mean(0)).square() + (a.std(0, correction=0) - b.std(0, correction=0)).square()
            expected += (apart.sum() / b.var(0, correction=0).sum()).item() / 4
    found = style_loss(token_statistics(ours, 2), token_statistics(theirs, 2))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_where_patches_are_does_not_count_and_how_many_there_are():
    theirs = tokens()
    order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(9, generator=seeded_generator(2))])
    moved = {layer: x[:, order] for layer, x in theirs.items()}
    twice = {layer: torch.cat([x, x[:, 1:]], 1) for layer, x in theirs.items()}
    swapped = {layer: x.flip(0) for layer, x in theirs.items()}
    wanted = token_statistics(theirs, 1)
    for same in (moved, twice):
        assert style_loss(token_statistics(same, 1), wanted).item() == pytest.approx(0, abs=1e-9)
    assert style_loss(token_statistics(swapped, 1), wanted).item() > 0.1


def test_the_scale_of_tokens_does_not_count():
    ours, theirs = tokens(), tokens(seed=1)
    expected = style_loss(token_statistics(ours, 1), token_statistics(theirs, 1)).item()
    ours, theirs = ({layer: 100 * x for layer, x in each.items()} for each in (ours, theirs))
    assert style_loss(token_statistics(ours, 1), token_statistics(theirs, 1)).item() == pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.parametrize(
    ("depth", "expected"), [(12, [2, 5, 8, 10]), (8, [1, 3, 5, 6]), (3, [0, 1]), (2, [0]), (1, [0])]
)
def test_it_looks_at_blocks_at_each_quarter_of_the_depth(depth, expected):
    assert style_layers(depth) == expected


def test_it_comes_in_the_same_passes(backbone):
    passes = []
    backbone.register_forward_pre_hook(lambda *_: passes.append(1))
    output, look = photo(2).requires_grad_(), photo(1)
    seen, target = encode(backbone, ViTInput(48), [output, look], style_layers(backbone.depth))
    plain, _ = encode(backbone, ViTInput(48), [output, look])
    assert len(passes) == 2 and plain.statistics is None
    torch.testing.assert_close(seen.cls, plain.cls, rtol=1e-4, atol=1e-5)
    style_loss(seen.statistics, target.statistics).backward()
    assert output.grad.any() and output.grad.isfinite().all()


def test_images_of_other_sizes_can_be_looks(backbone):
    layers = style_layers(backbone.depth)
    seen, wide = encode(backbone, ViTInput(48), [photo(0), photo(1, 48, 96)], layers)
    assert style_loss(seen.statistics, wide.statistics).item() > 0


def test_targets_are_split_and_reordered_with_their_statistics(backbone):
    layers = style_layers(backbone.depth)
    images = torch.cat([photo(seed) for seed in range(3)])
    (together,) = encode(backbone, ViTInput(48), [images], layers)
    for i, each in enumerate(together.split([1, 1, 1])):
        (alone,) = encode(backbone, ViTInput(48), [images[i : i + 1]], layers)
        torch.testing.assert_close(vars(each), vars(alone), rtol=1e-3, atol=1e-4)
    rolled = together.roll(1)
    assert torch.equal(rolled.statistics[1], together.statistics[0]) and torch.equal(rolled.cls[0], together.cls[2])
    assert torch.equal(rolled.keys[2], together.keys[1])
    assert Target(together.keys, together.cls).roll(1).statistics is None
