"""Fine contrasts of colors: the equation, what it leaves alone, and that a UNet applies it everywhere alike."""

from dataclasses import replace

import pytest
import torch

from splice_ff import InputError
from splice_ff.networks.bilateral_grid import centers, logits_and_added, recolor_in_bands
from splice_ff.networks.cross_attention_unet import SIZES, CrossAttentionUNet, UNetConfig
from splice_ff.networks.fine_colors import fine_colors
from splice_ff.utils.seeding import seeded_generator

SIZE = UNetConfig((16, 16, 32), 1, 1, 2, 4, 16, bins=5, parts=2, keeps_fine_colors=True)
WIDTH = 12
CPU = torch.device("cpu")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed))


def naive(added):
    """The equation, pixel by pixel."""
    colors = added - added.mean(1, keepdim=True)
    smooth, (height, width) = colors, added.shape[-2:]
    for _ in range(2):
        means = torch.empty_like(smooth)
        for y in range(height):
            for x in range(width):
                rows = torch.tensor([y - 1, y, y + 1]).clamp(0, height - 1)
                columns = torch.tensor([x - 1, x, x + 1]).clamp(0, width - 1)
                means[..., y, x] = smooth[..., rows[:, None], columns].mean((-2, -1))
        smooth = means
    return colors - smooth


@pytest.mark.parametrize(("height", "width"), [(7, 9), (1, 4), (1, 1)])
def test_it_computes_the_equation(height, width):
    added = noise(2, 3, height, width)
    torch.testing.assert_close(fine_colors(added), naive(added))


def test_brightness_and_even_tints_have_none():
    zeros = torch.zeros(2, 3, 8, 9)
    torch.testing.assert_close(fine_colors(noise(2, 1, 8, 9).expand(2, 3, 8, 9)), zeros)
    torch.testing.assert_close(fine_colors(noise(2, 3, 1, 1).expand(2, 3, 8, 9)), zeros, atol=1e-6, rtol=0)


@pytest.fixture
def inputs():
    structure = torch.rand(2, 3, 21, 30, generator=seeded_generator(1))
    return structure, noise(2, WIDTH, 3, 4), noise(2, SIZE.tokens, SIZE.token_channels)


def added(unet, structure, features, tokens):
    """What is added to the logits of colors."""
    change = unet.change(structure, features, tokens)
    rows, columns = (centers(side, extent, CPU) for side, extent in zip((21, 30), change.extent, strict=True))
    return logits_and_added(structure, change.grid, change.pixels, unet.guide, rows, columns)[1]


@torch.no_grad()
def test_painting_makes_that_change(randomized, inputs):
    unet = randomized(CrossAttentionUNet(SIZE, WIDTH))
    structure = inputs[0]
    at_once = unet(*inputs)
    torch.testing.assert_close(recolor_in_bands(structure, unet.change(*inputs), unet.guide), at_once)
    part = recolor_in_bands(structure, unet.change(*inputs).times(0.3), unet.guide)
    torch.testing.assert_close(unet(*inputs, strength=0.3), part)


@torch.no_grad()
def test_a_unet_takes_it_out_of_all_that_it_adds(randomized, inputs):
    unet, without = (randomized(CrossAttentionUNet(replace(SIZE, keeps_fine_colors=k), WIDTH)) for k in (True, False))
    raw = added(without, *inputs)
    assert fine_colors(raw).abs().mean() > 0.01  # else there is nothing to take out
    expected = raw - fine_colors(raw)
    inside = (..., slice(None, -2), slice(None, -2))  # beyond these images lies their padding, for the UNet
    torch.testing.assert_close(added(unet, *inputs)[inside], expected[inside])


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "tiny-grid"])
def test_grids_keep_them_and_an_untrained_unet_copies(name, inputs):
    assert SIZES[name].keeps_fine_colors == name.endswith("-grid")
    size = replace(SIZES[name], tokens=SIZE.tokens, token_channels=SIZE.token_channels)
    unet = CrossAttentionUNet(size, WIDTH)
    torch.testing.assert_close(unet(*inputs), inputs[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [1, "true", None])
def test_what_is_neither_true_nor_false(value):
    with pytest.raises(InputError, match="keeps_fine_colors must be true or false"):
        replace(SIZE, keeps_fine_colors=value)
