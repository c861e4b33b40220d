"""The distance of colors: its size, its gradients and its part in refining; training: `test_statistics_losses.py`."""

import pytest
import torch

from splice_ff.evaluation.image_metrics import color_distance
from splice_ff.losses import color
from splice_ff.losses.color import color_loss
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import PRESETS, REFINE, make_recipe
from splice_ff.utils.seeding import seeded_generator


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=seeded_generator(0))


def test_places_do_not_count_and_colors_do(images):
    order = torch.randperm(64 * 64, generator=seeded_generator(0))
    shuffled = images.flatten(2)[..., order].view_as(images)
    assert color_loss(images, images).item() == 0
    assert color_loss(shuffled, images).item() == pytest.approx(0, abs=1e-3)
    assert color_loss(images * 0.5, images).item() > 5


def test_its_first_term_is_the_distance_that_the_evaluation_reports(images, monkeypatch):
    monkeypatch.setattr(color, "FAR", 1e9)
    other = images**2
    expected = sum(color_distance(a[None], b[None]) for a, b in zip(images, other, strict=True)) / 2
    assert color_loss(images, other).item() == pytest.approx(expected, rel=0.1)


def test_a_few_far_colors_cost_more_than_many_near_ones():
    """One pixel in 64, gray for magenta, against a shift of all pixels that moves the first term as much."""
    gray = torch.full((1, 3, 64, 64), 0.5)
    far = gray.clone()
    far[:, :, :8, :8] = torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    first_term = color_distance(far, gray)
    near = gray + 0.02
    assert color_distance(near, gray) > first_term
    assert color_loss(far, gray) > 2 * color_loss(near, gray)


def test_a_fine_pattern_looks_like_its_mean():
    row = torch.arange(256)
    checkerboard = ((row[:, None] + row) % 2).float().expand(1, 3, 256, 256)
    assert color_loss(checkerboard, torch.full_like(checkerboard, 0.5)).item() == pytest.approx(0, abs=1e-3)


def test_sizes_do_not_count(images):
    wide = images.repeat_interleave(2, 3).repeat_interleave(3, 2)
    assert color_loss(wide, images).item() == pytest.approx(0, abs=1e-3)
    assert color_loss(wide, images * 0.5).item() == pytest.approx(color_loss(images, images * 0.5).item(), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_are_finite_on_flat_images(images, value):
    flat = torch.full_like(images, value).requires_grad_()
    color_loss(flat, images).backward()
    assert flat.grad.isfinite().all() and flat.grad.any()


class Tint(torch.nn.Module):
    """A generator that adds a color to every image."""

    def __init__(self):
        super().__init__()
        self.change = torch.nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, images):
        return (images + self.change).clamp(0, 1)


def per_pair(backbone, weight):
    recipe = make_recipe("fast", size=80, steps=3, backbone="tiny", color_weight=weight, precision="fp32")
    images = (torch.rand(1, 3, 80, width, generator=seeded_generator(1)) for width in (80, 96))
    return PairOptimizer(*images, backbone, recipe, generator=Tint())


def test_recipes_take_it_with_their_weight(tiny_backbone):
    assert {name: recipe.color_weight for name, recipe in PRESETS.items()} == {"paper": 0, "fast": 0}
    assert REFINE.color_weight > 0
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        optimizer = per_pair(tiny_backbone(), weight)
        optimizer.adam.step = optimizer.adam.zero_grad = lambda: None
        optimizer.step()
        gradients[weight] = optimizer.generator.change.grad.clone()
    term = gradients[1.0] - gradients[0.0]
    assert term.abs().max() > 0
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * term, rtol=1e-3, atol=1e-6)


def test_it_chooses_the_best_image_too(tiny_backbone):
    optimizer = per_pair(tiny_backbone(), 1e4)
    _, losses, objective = optimizer._whole_image()
    expected = 1e4 * color_loss(optimizer.structure, optimizer.appearance).item()
    assert objective - losses["total"] == pytest.approx(expected, rel=1e-3)
