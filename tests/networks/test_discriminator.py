"""The projected discriminator: what it is told, what it trains."""

import torch

from splice_ff.networks.discriminator import MIXED, ProjectedDiscriminator

CHANNELS = (6, 12, MIXED + 44)


def maps(count=2):
    return [torch.randn(count, c, side, side + 2) for c, side in zip(CHANNELS, (16, 8, 4), strict=True)]


def make():
    torch.manual_seed(0)
    return ProjectedDiscriminator(CHANNELS, 10)


def test_every_scale_has_logits_at_half_its_sides_coarsest_first():
    logits = make()(maps(), torch.randn(2, 10))
    assert [tuple(x.shape) for x in logits] == [(2, 2, 3), (2, 4, 5), (2, 8, 9)]


def test_the_random_mixing_stays_as_it_is_and_the_heads_learn():
    discriminator = make()
    sum(x.sum() for x in discriminator(maps(), torch.randn(2, 10))).backward()
    for name, parameter in discriminator.named_parameters():
        is_mixing = name.startswith("mix_")
        assert parameter.requires_grad != is_mixing
        assert (parameter.grad is None) == is_mixing, name


def test_fine_logits_depend_on_coarse_maps():
    """Scales are mixed from coarse to fine, as in the paper: texture is judged where it is."""
    discriminator, features, cls = make().eval(), maps(), torch.randn(2, 10)
    fine = discriminator(features, cls)[-1]
    features[-1] = features[-1] + torch.randn_like(features[-1])
    assert (discriminator(features, cls)[-1] - fine).abs().max() > 1e-4
    coarse = discriminator(features, cls)[0]
    features[0] = features[0] + torch.randn_like(features[0])
    assert torch.equal(discriminator(features, cls)[0], coarse)


def test_the_look_counts_and_its_scale_does_not():
    discriminator, features, cls = make().eval(), maps(), torch.randn(2, 10)
    first = discriminator(features, cls)
    for same, other in zip(discriminator(features, 7 * cls), first, strict=True):
        torch.testing.assert_close(same, other, rtol=1e-3, atol=1e-4)
    for swapped, other in zip(discriminator(features, cls.flip(0)), first, strict=True):
        assert (swapped - other).abs().max() > 1e-4
