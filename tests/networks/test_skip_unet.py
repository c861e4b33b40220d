"""The generator is the published one, written faster."""

import pytest
import torch
from torch import nn

from splice_ff.benchmark import NaiveSkipUNet
from splice_ff.networks.skip_unet import MIN_SIDE, VARIANTS, SkipUNet


def plain_twin(net: SkipUNet) -> NaiveSkipUNet:
    """The plain BatchNorm generator with the same weights."""
    plain = NaiveSkipUNet()
    ours, theirs = net.state_dict(), {}
    for key in plain.state_dict():
        if "running" in key or "num_batches" in key:
            theirs[key] = plain.state_dict()[key]
            continue
        part, level, *rest = key.split(".")
        name = ".".join(rest)
        if part == "joins":
            source = f"joins.{level}.norm.{name}"
        elif part == "up" and name.startswith("0.0."):
            source = f"joins.{level}.conv.{name[4:]}"
        elif part == "up" and name.startswith("0.1."):
            source = f"up.{level}.0.{name[4:]}"
        elif part == "up":
            source = f"up.{level}.2.{name[2:]}"
        else:
            source = key
        theirs[key] = ours[source]
    plain.load_state_dict(theirs)
    return plain.train()


@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
def test_same_function_and_gradients_as_the_plain_one(size):
    torch.manual_seed(0)
    net = SkipUNet().double()
    for p in net.parameters():  # away from the tiny initial weights, where everything is nearly constant
        nn.init.normal_(p, 0.1, 0.3)
    plain = plain_twin(net).double()
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    ours, theirs = net(image), plain(image)
    assert ours.shape == image.shape
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)  # ours ends in float32
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradients = [(a.grad, b.grad) for a, b in zip(net.down.parameters(), plain.down.parameters(), strict=True)]
    ours, theirs = (torch.cat([g.flatten() for g in side]) for side in zip(*gradients, strict=True))
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(33, 33), (65, 127), (131, 70)])
def test_size_and_range(variant, size):
    out = SkipUNet(variant)(torch.rand(1, 3, *size))
    assert out.shape == (1, 3, *size)
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_of_a_batch_do_not_mix(variant):
    torch.manual_seed(0)
    net = SkipUNet(variant)
    images = torch.rand(2, 3, 64, 80)
    alone = torch.cat([net(images[:1]), net(images[1:])])
    torch.testing.assert_close(net(images), alone, rtol=1e-4, atol=1e-5)


def test_variants_differ_as_they_say():
    published, refined = SkipUNet("published"), SkipUNet("refined")
    assert published.up[0][2][0].kernel_size == (1, 1)
    assert refined.up[0][2][0].kernel_size == (3, 3)
    assert refined.down[0][0][0].padding_mode == "reflect"


def test_published_initialization():
    torch.manual_seed(0)
    conv = SkipUNet().down[4][1][0]
    expected = 0.02 * (2 / (128 * 9 + 128 * 9)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert conv.bias.abs().max() == 0


def test_too_small_an_image_says_so():
    with pytest.raises(ValueError, match=f"at least {MIN_SIDE}"):
        SkipUNet()(torch.rand(1, 3, MIN_SIDE - 1, 100))


def test_bfloat16_is_finite_and_the_image_float32():
    with torch.autocast("cpu", torch.bfloat16):
        out = SkipUNet()(torch.rand(1, 3, 64, 64))
    assert out.dtype == torch.float32 and out.isfinite().all()
