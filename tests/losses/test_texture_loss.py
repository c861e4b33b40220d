"""The distance of local contrasts : what it sees."""

import math

import pytest
import torch
import torch.nn.functional as F

from splice_ff.evaluation.image_metrics import texture_distance
from splice_ff.losses.texture import _bands, texture_loss
from splice_ff.utils.color import lab_to_rgb
from splice_ff.utils.seeding import seeded_generator


@pytest.fixture
def images():
    coarse = torch.rand(2, 3, 20, 20, generator=seeded_generator(0))
    return F.interpolate(coarse, 160, mode="bicubic").clamp(0, 1)


def rough(images, amount):
    noise = torch.randn(2, 1, 80, 80, generator=seeded_generator(1))
    return (images + amount * F.interpolate(noise, 160, mode="bilinear")).clamp(0, 1)


def test_places_do_not_count_and_contrasts_do(images):
    gray = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    turned = gray.flip(-1).rot90(1, (-2, -1))
    assert texture_loss(gray, gray).item() == 0
    assert texture_loss(turned, gray).item() < 0.1 * texture_loss(gray, torch.full_like(gray, 0.5)).item()
    assert texture_loss(rough(gray, 0.02), gray) < texture_loss(rough(gray, 0.1), gray)
    assert texture_loss(0.5 + 0.2 * (gray - 0.5), gray).item() > 0.2


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_contrasts_of_lightness_and_of_colors_count_alike(channel):
    flat, pattern = torch.tensor([50.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    pattern[:, channel] = torch.randn(64, 64, generator=seeded_generator(0))
    loss = texture_loss(lab_to_rgb(flat + pattern), lab_to_rgb(flat))
    expected = torch.stack([band.abs().mean() for band in _bands(pattern[:, channel : channel + 1])]).mean()
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)


def test_one_tint_for_all_does_not_count(images):
    """Nor does lightness: of all colors the mean is the term `color`'s affair."""
    lab = torch.tensor([50.0, 0, 0]).view(1, 3, 1, 1) + 5 * (images - 0.5)
    shifted = lab + torch.tensor([5.0, 10, -10]).view(1, 3, 1, 1)
    assert texture_loss(lab_to_rgb(lab), lab_to_rgb(shifted)).item() < 1e-3


def test_it_ranks_as_the_evaluation_does(images):
    for loss in (texture_loss, texture_distance):
        costs = [float(loss(rough(images, x)[:1], rough(images, 0.05)[:1])) for x in (0.05, 0.06, 0.1, 0.3)]
        assert costs == sorted(costs), loss


@pytest.mark.parametrize("cells", [160, 80, 40])
def test_each_band_counts(cells):
    flat, random = torch.full((1, 3, 160, 160), 0.5), seeded_generator(0)
    noise = 0.1 * torch.randn(1, 1, cells, cells, generator=random)
    pattern = F.interpolate(noise, 160, mode="nearest")
    bands = [band.abs().mean().item() for band in _bands(100 * (flat + pattern)[:, :1])]
    assert texture_loss(flat + pattern, flat).item() > 0.2 * max(bands)
    assert len(bands) == 3 and bands[int(math.log2(160 / cells))] == max(bands)


def test_no_place_counts_more_than_its_neighbor(images):
    """If some did, what they learn would draw a raster."""
    smooth, random = images.clone().requires_grad_(), seeded_generator(2)
    texture_loss(smooth, (images + 0.1 * torch.randn(images.shape, generator=random)).clamp(0, 1)).backward()
    slopes = torch.stack([smooth.grad[..., i::2, j::2].abs().mean() for i in (0, 1) for j in (0, 1)])
    assert slopes.max() < 1.3 * slopes.min()


@pytest.mark.parametrize("side", [32, 45, 200])
def test_any_size_will_do(images, side):
    first, second = (F.interpolate(x, (side, side)) for x in (images, rough(images, 0.1)))
    assert texture_loss(first, first).item() == 0 < 0.1 < texture_loss(first, second).item()
