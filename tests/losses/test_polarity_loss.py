"""The polarity loss: what costs, what is free."""

import pytest
import torch

from splice_ff.losses.polarity import polarity_loss


def blob(contrast, radius=5.0, side=80, base=0.5, center=40):
    """A soft disc on a flat ground, lighter or darker than it."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = torch.exp(-((x - center) ** 2 + (y - center) ** 2) / (2 * (radius / 2) ** 2))
    return (base + contrast * disc).expand(1, 3, side, side)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_blob_that_changes_its_sign_costs_and_one_that_keeps_it_does_not(sign):
    structure = blob(0.3 * sign)
    assert polarity_loss(blob(-0.3 * sign), structure).item() > 0.005
    for kept in (blob(0.3 * sign), blob(0.45 * sign), blob(0.1 * sign, base=0.4)):
        assert polarity_loss(kept, structure).item() < 1e-4


def test_the_larger_the_change_the_more_it_costs():
    costs = [polarity_loss(blob(contrast), blob(-0.3)).item() for contrast in (0.0, 0.1, 0.2, 0.4)]
    assert costs == sorted(costs) and costs[1] > 2 * costs[0]


def test_edges_and_what_the_structure_lacks_are_free():
    step = torch.full((1, 3, 80, 80), 0.2)
    step[..., 40:] = 0.8
    assert polarity_loss(1 - step, step).item() < 0.02 * polarity_loss(blob(0.3), blob(-0.3)).item()
    assert polarity_loss(blob(0.4), torch.full((1, 3, 80, 80), 0.5)).item() < 1e-6


def test_large_images_are_compared_at_one_size():
    small, large = (polarity_loss(blob(0.3, *a), blob(-0.3, *a)) for a in ((5.0, 80), (20.0, 320, 0.5, 160)))
    torch.testing.assert_close(small, large, rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", [(16, 16), (16, 90), (80, 300)])
def test_any_size_will_do(shape):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    assert polarity_loss(images, images).item() == 0 < polarity_loss(1 - images, images).item()
