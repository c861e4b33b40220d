"""k-NN, ridge regression, R^2 and the appearance statistics on data whose answers are known."""

import math

import pytest
import torch

from splice_ff.pretraining.probes import (
    cls_tokens,
    color_statistics,
    knn_accuracy,
    linear_accuracy,
    measure,
    noise_response,
    r_squared,
)
from splice_ff.pretraining.scales import APPEARANCE, IDENTITY, loss_scales
from splice_ff.pretraining.statistics import Standardize, appearance_statistics, pooled
from splice_ff.utils.color import rgb_to_lab
from splice_ff.vit.features import ViTFeatures


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def directions(*degrees):
    angles = torch.tensor(degrees) / 180 * math.pi
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_knn_by_hand():
    # references at 0, 10, 90, 100 and 110 degrees; queries at 20 (a), 95 (b) and 60 (an a that lies nearer to the b's)
    features = directions(0.0, 10.0, 90.0, 100.0, 110.0, 20.0, 95.0, 60.0) * torch.arange(1.0, 9.0)[:, None]
    labels = ["a", "a", "b", "b", "b", "a", "b", "a"]
    assert knn_accuracy(features, labels, references=5, k=3) == pytest.approx(2 / 3)


def test_of_as_many_votes_the_nearer_wins():
    features = directions(0.0, 30.0, 16.0, 14.0)
    assert knn_accuracy(features, ["a", "b", "b", "a"], references=2, k=2) == 1.0
    assert knn_accuracy(features, ["a", "b", "a", "b"], references=2, k=2) == 0.0


def test_a_linear_map_is_found_and_noise_is_not():
    features = torch.randn(400, 12, generator=generator())
    told = features @ torch.randn(12, 1, generator=generator(1)) + 3
    noise = torch.randn(400, 1, generator=generator(2))
    half = told + told.std() * noise  # half of the variance
    found = r_squared(features, torch.cat([told, noise, half], 1), 280)
    assert found[0] > 0.999 and found[1] < 0.1 and found[2] == pytest.approx(0.5, abs=0.12)


def test_the_linear_probe_separates_what_a_line_separates():
    features = torch.randn(300, 5, generator=generator())
    labels = ["up" if x > 0 else "down" for x in features[:, 2]]
    assert linear_accuracy(features, labels, 210) > 0.9
    shuffled = [labels[i] for i in torch.randperm(300, generator=generator()).tolist()]
    assert linear_accuracy(features, shuffled, 210) < 0.7


def test_colors_of_plain_images():
    colors = torch.randint(0, 256, (5, 3, 1, 1), dtype=torch.uint8, generator=generator())
    found = color_statistics(colors.expand(-1, -1, 8, 8))
    assert torch.allclose(found[:, :3], rgb_to_lab(colors / 255)[..., 0, 0], atol=1e-3)
    assert found[:, 3:].abs().max() < 1e-3


def test_the_token_that_is_measured(tiny_vit):
    vit = tiny_vit()
    backbone = ViTFeatures(vit)
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8, generator=generator())
    with torch.no_grad():
        wanted = vit.forward_features((images / 255 - backbone.mean) / backbone.std)[:, 0]
        assert torch.allclose(cls_tokens(backbone, images, batch_size=2), wanted, atol=1e-4)
    assert cls_tokens(backbone, images, size=32).shape == (3, 48)


def test_what_a_run_notes():
    colors = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8, generator=generator())
    found = measure(color_statistics(colors), colors, None)
    assert set(found) == {"color", "spread"} and found["color"] > 0.99 and found["spread"] > 0.99
    assert set(measure(torch.rand(60, 3), colors, ["x"] * 60)) == {"knn", "color", "spread"}


def test_appearance_statistics():
    flat = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    found = appearance_statistics(flat)[0]
    assert torch.allclose(found[:6], torch.tensor([0.2, 0.5, 0.7, 0, 0, 0]), atol=1e-5)
    assert torch.allclose(found[6:], torch.full((12,), math.log(1e-3)), atol=1e-2)
    fine = flat.clone()
    fine[..., ::2] += 0.2
    coarse = flat.clone()
    coarse[..., :16] += 0.2
    fine, coarse = (appearance_statistics(x)[0, 6:].view(4, 3).mean(1) for x in (fine, coarse))
    assert fine.argmax() == 0 and coarse.argmax() == 3


def test_pooled_and_standardized():
    maps = torch.randn(6, 4, 3, 5, generator=generator()) * 7 + 2
    found = pooled(maps)
    assert torch.allclose(found[:, :4], maps.flatten(2).mean(2), atol=1e-5)
    assert torch.allclose(found[:, 4:], maps.flatten(2).std(2, correction=0), atol=1e-5)
    standard = Standardize(8)
    standard.measure([found[:4], found[4:]])
    assert standard(found).mean(0).abs().max() < 1e-5
    assert torch.allclose(standard(found).std(0, correction=0), torch.ones(8), atol=1e-5)
    dead = Standardize(1)
    dead.measure([torch.full((4, 1), 3.0)])
    assert dead(torch.full((2, 1), 3.0)).tolist() == [[0.0], [0.0]]


def test_loss_scales_balance_the_distances(tiny_backbone):
    backbone = tiny_backbone()
    images = torch.rand(4, 3, 48, 48, generator=generator())
    scales = loss_scales(backbone, images)
    with torch.no_grad():
        found = backbone(images, cls=True, keys=[-1])
    structure, cls, keys = (
        (x - x.roll(1, 0)).square().mean().item() for x in (found.self_similarity(), found.cls[:, -1], found.keys[2])
    )
    assert scales.appearance * cls == pytest.approx(APPEARANCE * structure, rel=0.06)
    assert scales.identity * keys == pytest.approx(IDENTITY * structure, rel=0.06)


def test_the_response_to_noise_is_a_share_of_the_way_to_another_image(tiny_backbone):
    backbone = tiny_backbone()
    smooth = torch.randint(0, 255, (6, 3, 2, 2), dtype=torch.uint8).repeat_interleave(16, -1).repeat_interleave(16, -2)
    found = noise_response(backbone, smooth, 32)
    assert 0 < found["cls"] < 1 and 0 < found["keys"] < 1 and found["contrast"] > 0
    assert found == noise_response(backbone, smooth, 32)
