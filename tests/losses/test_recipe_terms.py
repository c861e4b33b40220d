"""What a recipe adds to the losses of the paper: each term with its weight, in steps and in choosing the best image."""

import pytest
import torch
import torch.nn.functional as F

from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import PRESETS, REFINE, make_recipe
from splice_ff.utils.seeding import seeded_generator

TERMS = ("style_weight", "color_weight", "edge_weight")


class Spots(torch.nn.Module):
    """A generator that adds spots to every image: edges, colors and another style."""

    def __init__(self):
        super().__init__()
        self.spots = torch.nn.Parameter(0.3 * torch.randn(1, 3, 10, 10, generator=seeded_generator(0)))

    def forward(self, images):
        return (images + F.interpolate(self.spots, images.shape[-2:])).clamp(0, 1)


def per_pair(backbone, term, weight):
    recipe = make_recipe("fast", size=80, steps=3, backbone=backbone.name, precision="fp32", **{term: weight})
    flat = torch.full((1, 3, 80, 80), 0.5)
    noise = 0.4 + 0.1 * torch.rand(1, 3, 80, 96, generator=seeded_generator(1))
    return PairOptimizer(flat, noise, backbone, recipe, generator=Spots())


@pytest.mark.parametrize("term", TERMS)
def test_presets_follow_the_paper_and_refining_takes_it(term):
    assert [getattr(recipe, term) for recipe in PRESETS.values()] == [0, 0]
    assert getattr(REFINE, term) > 0


@pytest.mark.parametrize("term", TERMS)
def test_a_step_takes_it_with_its_weight(tiny_backbone, term):
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        optimizer = per_pair(tiny_backbone(), term, weight)
        optimizer.adam.step = optimizer.adam.zero_grad = lambda: None
        losses = optimizer.step()
        assert (losses.style.item() > 0) == (term == "style_weight" and weight > 0)
        gradients[weight] = optimizer.generator.spots.grad.clone()
    added = gradients[1.0] - gradients[0.0]
    assert added.abs().max() > 0
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * added, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_it_helps_to_choose_the_best_image(tiny_backbone, term):
    added = []
    for weight in (1.0, 3.0):
        _, losses, objective = per_pair(tiny_backbone(), term, weight)._whole_image()
        added.append(objective - losses["total"])
    assert added[0] > 1e-3 and added[1] == pytest.approx(3 * added[0], rel=1e-3)
