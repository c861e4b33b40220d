"""Edges that the structure image lacks: what costs and what does not, gradients, and the runs that take the loss."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from splice_ff.losses.edges import SIDE, edge_loss
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import make_recipe
from splice_ff.utils.seeding import seeded_generator


def disc(center, radius=16, side=160, inside=0.2, outside=0.6):
    """A gray image (1, 3, side, side) with a round spot."""
    rows = torch.arange(side).float()
    is_inside = (rows[:, None] - center[0]) ** 2 + (rows - center[1]) ** 2 < radius**2
    return torch.where(is_inside, inside, outside).expand(1, 3, side, side).clone()


@pytest.fixture
def structure():
    return disc((60, 60))


@pytest.fixture
def look():
    """Flat: any edge in an output is the structure's or invented."""
    return torch.full((1, 3, 160, 160), 0.4)


def test_what_was_there_costs_nothing_in_any_color(structure, look):
    tint = torch.tensor([0.9, 0.7, 0.4]).view(1, 3, 1, 1)
    assert edge_loss(structure, structure, look).item() == 0
    assert edge_loss(structure * tint, structure, look).item() == 0
    assert edge_loss(1 - structure, structure, look).item() == pytest.approx(0, abs=1e-3)
    assert edge_loss(torch.full_like(structure, 0.5), structure, look).item() == 0


def test_a_spot_that_the_structure_lacks_costs_by_its_edge(structure, look):
    also = torch.minimum(structure, disc((60, 120)))
    larger = torch.minimum(structure, disc((60, 120), radius=24))
    fainter = torch.minimum(structure, disc((60, 120), inside=0.4))
    costs = [edge_loss(output, structure, look).item() for output in (fainter, also, larger)]
    assert 0 < costs[0] < costs[1] < costs[2]


def test_a_spot_of_another_color_and_the_same_lightness_costs_too(structure, look):
    colored = structure.clone()
    colored[..., 50:70, 110:130] = torch.tensor([0.85, 0.5, 0.5]).view(1, 3, 1, 1)
    assert edge_loss(colored, structure, look).item() > 0.005


def test_more_contrast_throughout_costs_less_than_in_one_place():
    """A gray cat turned black and white has stronger edges, where it had some."""
    structure = torch.maximum(disc((60, 60), inside=0.45, outside=0.0), disc((60, 120), inside=0.5, outside=0.0))
    structure = torch.where(structure > 0, structure, 0.6)
    look = torch.full_like(structure, 0.4)
    stronger = ((structure - 0.6) * 3 + 0.6).clamp(0, 1)
    in_one_place = torch.where(torch.arange(160) < 90, stronger, structure)
    assert edge_loss(stronger, structure, look).item() == pytest.approx(0, abs=1e-3)
    assert edge_loss(in_one_place, structure, look) > edge_loss(stronger, structure, look)


def test_an_edge_may_move_a_little(structure, look):
    costs = [edge_loss(disc((60 + shift, 60)), structure, look).item() for shift in (0, 3, 12)]
    assert costs[0] == 0 and costs[1] < 0.1 * costs[2]


def test_half_of_a_looks_mean_gradient_is_free(look):
    """Ramps: their gradient is the same everywhere."""
    ramp = torch.linspace(-0.25, 0.25, 160).expand_as(look)
    flat = torch.full_like(look, 0.5)
    for share, is_free in ((0.4, True), (0.45, True), (0.6, False), (1.0, False)):
        assert (edge_loss(flat + share * ramp, flat, flat + ramp).item() < 1e-4) == is_free, share


def test_sizes_agree(structure, look):
    spotted = torch.minimum(structure, disc((60, 120)))
    expected = edge_loss(spotted, structure, look).item()
    twice = [F.interpolate(x, scale_factor=2.0, mode="bilinear") for x in (spotted, structure)]
    assert edge_loss(*twice, look).item() == pytest.approx(expected, rel=0.1)
    wide = [torch.cat([x, x], -1) for x in (spotted, structure)]
    assert edge_loss(*wide, look[..., :100]).item() == pytest.approx(expected, rel=0.1)
    tiny = [F.interpolate(x, size=SIDE // 2, mode="bilinear", antialias=True) for x in (spotted, structure)]
    assert 0 < edge_loss(*tiny, look).item() < 4 * expected


def test_every_pair_of_a_batch_has_its_own_allowance(structure, look):
    spotted = torch.minimum(structure, disc((60, 120)))
    rough = torch.rand(look.shape, generator=seeded_generator(0))
    alone = [edge_loss(spotted, structure, each) for each in (look, rough)]
    batch = edge_loss(spotted.repeat(2, 1, 1, 1), structure.repeat(2, 1, 1, 1), torch.cat([look, rough]))
    assert batch.item() == pytest.approx(sum(alone).item() / 2, rel=1e-4) and alone[0] > alone[1]


SPOT = torch.minimum(disc((30, 60), side=80) - 0.6, torch.zeros(()))
"""What darkens a disc at the right of another."""


class Spots(torch.nn.Module):
    """A generator that adds something to every image."""

    def __init__(self, extra):
        super().__init__()
        self.extra = torch.nn.Parameter(extra.clone())

    def forward(self, images):
        return (images + F.interpolate(self.extra, images.shape[-2:])).clamp(0, 1)


def per_pair(backbone, weight, generator):
    structure, appearance = disc((30, 30), side=80), torch.full((1, 3, 80, 80), 0.4)
    recipe = make_recipe("fast", size=80, steps=3, backbone=backbone.name, terms={"edges": weight}, precision="fp32")
    return PairOptimizer(structure, appearance, backbone, recipe, generator=generator)


def test_the_penalty_chooses_the_best_image_too(tiny_backbone):
    """An image with invented edges is kept for its losses alone, and not where edges are penalized."""
    kept = {}
    for weight in (0.0, 1e6):
        optimizer = per_pair(tiny_backbone(), weight, Spots(torch.zeros_like(SPOT)))
        optimizer._evaluate()
        losses = optimizer.best_losses["total"]
        with torch.no_grad():
            optimizer.averaged.extra.copy_(SPOT)
        optimizer._best = replace(optimizer._best, losses={"total": losses + 1e3}, objective=losses + 1e3)
        optimizer.step_count = 1
        optimizer._evaluate()
        kept[weight] = optimizer._best.step
    assert kept == {0.0: 1, 1e6: 0}
