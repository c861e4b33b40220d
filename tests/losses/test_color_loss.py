"""The distance of colors: its size and gradients; runs with it: `test_statistics_losses.py`, `test_recipe_terms.py`."""

import pytest
import torch

from splice_ff.evaluation.image_metrics import color_distance
from splice_ff.losses import color
from splice_ff.losses.color import color_loss
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
