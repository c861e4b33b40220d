"""Edges that the structure image lacks: what costs and what does not, gradients, and the runs that take the loss."""

import pytest
import torch
import torch.nn.functional as F
from support.training_setup import read_config, write_run

from splice_ff.edge_loss import SIDE, edge_loss
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import PRESETS, REFINE, make_recipe
from splice_ff.training.trainer import Trainer
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


def test_more_contrast_throughout_costs_less_than_in_one_place(structure, look):
    """A gray cat turned black and white has stronger edges, where it had some."""
    stronger = ((structure - 0.5) * 2 + 0.5).clamp(0, 1)
    assert edge_loss(stronger, structure, look).item() == pytest.approx(0, abs=1e-3)


def test_a_textured_look_allows_its_texture_anywhere_and_less_of_a_spot(structure, look):
    noise = 0.2 * torch.randn(1, 1, 80, 80, generator=seeded_generator(0))
    texture = F.interpolate(noise, scale_factor=2.0)
    spotted, textured_look = torch.minimum(structure, disc((60, 120))), look + texture
    assert edge_loss(structure + texture / 2, structure, textured_look) < 0.2 * edge_loss(
        structure + texture / 2, structure, look
    )
    assert 0 < edge_loss(spotted, structure, textured_look) < edge_loss(spotted, structure, look)


def test_sizes_agree(structure, look):
    spotted = torch.minimum(structure, disc((60, 120)))
    expected = edge_loss(spotted, structure, look).item()
    twice = [F.interpolate(x, scale_factor=2.0, mode="bilinear") for x in (spotted, structure)]
    assert edge_loss(*twice, look).item() == pytest.approx(expected, rel=0.1)
    wide = [torch.cat([x, x], -1) for x in (spotted, structure)]
    assert edge_loss(*wide, look[..., :100]).item() == pytest.approx(expected, rel=0.1)
    tiny = torch.rand(1, 3, SIDE // 2, SIDE // 2, generator=seeded_generator(0))
    assert edge_loss(tiny, tiny, look).item() == 0


def test_every_pair_of_a_batch_has_its_own_allowance(structure, look):
    spotted = torch.minimum(structure, disc((60, 120)))
    rough = torch.rand(look.shape, generator=seeded_generator(0))
    alone = [edge_loss(spotted, structure, each) for each in (look, rough)]
    batch = edge_loss(spotted.repeat(2, 1, 1, 1), structure.repeat(2, 1, 1, 1), torch.cat([look, rough]))
    assert batch.item() == pytest.approx(sum(alone).item() / 2, rel=1e-4) and alone[0] > alone[1]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_are_finite_on_flat_images(structure, look, value):
    flat = torch.full_like(structure, value).requires_grad_()
    edge_loss(flat, structure, look).backward()
    assert flat.grad.isfinite().all()
    also = torch.minimum(structure, disc((60, 120))).requires_grad_()
    edge_loss(also, torch.full_like(structure, value), look).backward()
    assert also.grad.isfinite().all() and also.grad.any()


def test_half_precision_does_not_round_it(structure, look):
    also = torch.minimum(structure, disc((60, 120)))
    expected = edge_loss(also, structure, look)
    with torch.autocast("cpu", torch.bfloat16):
        assert edge_loss(also, structure, look).item() == expected.item()


def test_training_takes_it_with_its_weight(tmp_path, vit_state):
    trainer = Trainer(read_config(write_run(tmp_path, vit_state), "loss.edges=0.5"), quiet=True)
    batch = next(trainer.data.batches(0))
    assert trainer.losses(batch)[1].item() == pytest.approx(0, abs=1e-6)  # an untrained generator copies
    with torch.no_grad():
        trainer.generator.unet.to_rgb[-1].weight.normal_(std=2.0, generator=seeded_generator(0))
    output = trainer.losses(batch)[1].item()
    assert output > 1e-4 and "others" in trainer.step(trainer.data.batches(0))


def test_recipes_take_it_with_their_weight(tiny_backbone):
    assert {name: recipe.edge_weight for name, recipe in PRESETS.items()} == {"paper": 0, "fast": 0}
    assert REFINE.edge_weight > 0
    backbone, structure, appearance = tiny_backbone(), disc((30, 30), side=80), torch.full((1, 3, 80, 80), 0.4)

    class Spots(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.extra = torch.nn.Parameter(torch.minimum(structure, disc((30, 60), side=80)) - structure)

        def forward(self, images):
            return (images + F.interpolate(self.extra, images.shape[-2:])).clamp(0, 1)

    moved = {}
    for weight in (0.0, 100.0):
        recipe = make_recipe("fast", size=80, steps=3, backbone=backbone.name, edge_weight=weight, precision="fp32")
        optimizer = PairOptimizer(structure, appearance, backbone, recipe, generator=Spots())
        for _ in range(3):
            optimizer.step()
        moved[weight] = edge_loss(structure + optimizer.generator.extra.detach(), structure, appearance).item()
    assert moved[100.0] < moved[0.0]
