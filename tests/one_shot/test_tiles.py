"""Tiles against whole images, where both fit; and the memory that a large one takes."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from splice_ff.networks.cross_attention_unet import CrossAttentionUNet, UNetConfig
from splice_ff.one_shot.tiles import freeze_statistics, paint_in_tiles, reach

SIZE = UNetConfig((16, 16, 32), 1, 1, 2, 4, 16)
WIDTH = 12


@pytest.fixture(scope="module", params=["maps", "grid", "grid that keeps fine colors"])
def unet(randomized, request):
    """Random, and paints strongly: what is wrong anywhere shows."""
    grid = {"bins": 4, "parts": 2, "keeps_fine_colors": "fine" in request.param} if "grid" in request.param else {}
    unet = randomized(CrossAttentionUNet(replace(SIZE, **grid), WIDTH)).eval()
    unet.to_rgb[-1].weight.data *= 3
    return unet


def inputs(h, w, batch=1, seed=0):
    """Smooth images with detail, looks, and maps of structure features with another aspect than whole strides have."""
    random = torch.Generator().manual_seed(seed)
    smooth = torch.rand(batch, 3, 5, 7, generator=random)
    structure = torch.nn.functional.interpolate(smooth, (h, w), mode="bicubic")
    structure = (structure + 0.2 * torch.randn(structure.shape, generator=random)).clamp(0, 1)
    tokens = torch.randn(batch, SIZE.tokens, SIZE.token_channels, generator=random)
    return structure, torch.randn(batch, WIDTH, 6, 9, generator=random), tokens


@pytest.mark.parametrize(("h", "w"), [(160, 256), (150, 203), (37, 301), (130, 20)])
@torch.no_grad()
def test_tiles_are_the_whole(unet, h, w):
    structure, features, tokens = inputs(h, w, batch=2)
    whole = unet(structure, features, tokens)
    assert (whole - structure).abs().mean() > 0.05  # else any copy would pass
    tiled = paint_in_tiles(unet, structure, features, tokens, core=64, statistics_pixels=h * w)
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), [(300, 406), (75, 101), (150, 203)])
@torch.no_grad()
def test_tiles_are_the_whole_at_full_size(unet, h, w):
    structure, features, tokens = inputs(150, 203)
    full = torch.nn.functional.interpolate(structure, (h, w), mode="bicubic", antialias=True).clamp(0, 1)
    whole = unet(structure, features, tokens, full)
    tiled = paint_in_tiles(unet, structure, features, tokens, core=64, statistics_pixels=150 * 203, full_structure=full)
    assert tiled.shape == full.shape and (whole - full).abs().mean() > 0.05
    torch.testing.assert_close(tiled, whole, atol=5e-5, rtol=0)
    part = paint_in_tiles(unet, structure, features, tokens, 64, 150 * 203, full, strength=0.4)
    torch.testing.assert_close(part, unet(structure, features, tokens, full, strength=0.4), atol=5e-5, rtol=0)
    assert (part - whole).abs().mean() > 0.02


@torch.no_grad()
def test_the_margin_is_no_larger_than_needed_and_large_enough(unet):
    """A pixel changes the output up to `reach` away, no further, and nearly as far."""
    structure, features, tokens = inputs(256, 256)
    frozen = freeze_statistics(unet, structure, features, tokens).double()
    changed = structure.clone().double()
    changed[..., 128, 128] = 1 - changed[..., 128, 128]
    features, tokens = features.double(), tokens.double()
    difference = frozen(changed, features, tokens) - frozen(structure.double(), features, tokens)
    columns = (difference.abs().amax((0, 1, 2)) > 0).nonzero().flatten()
    furthest = (columns - 128).abs().max().item()
    assert reach(unet) - 2 * unet.stride < furthest <= reach(unet)


@torch.no_grad()
def test_reduced_statistics_leave_no_seams(unet):
    """With statistics from a reduced pass the image differs from the whole one, but not at the borders of tiles."""
    structure, features, tokens = inputs(256, 256, seed=1)
    whole = unet(structure, features, tokens)
    tiled = paint_in_tiles(unet, structure, features, tokens, core=64, statistics_pixels=128 * 128)
    difference = tiled - whole
    assert difference.abs().max() > 1e-3  # the statistics do differ
    steps = difference.diff(dim=-1).abs().amax((0, 1, 2)), difference.diff(dim=-2).abs().amax((0, 1, 3))
    for step in steps:  # from each row or column to the next; tiles meet after 63, 127 and 191
        borders = torch.zeros(255, dtype=torch.bool)
        borders[[63, 127, 191]] = True
        assert step[borders].max() <= step[~borders].max()
        assert step[borders].mean() <= 1.2 * step[~borders].mean()


@torch.no_grad()
def test_without_a_margin_there_are_seams(unet, monkeypatch):
    """What the test above would find."""
    monkeypatch.setattr("splice_ff.one_shot.tiles.reach", lambda unet: 0)
    structure, features, tokens = inputs(256, 256, seed=1)
    tiled = paint_in_tiles(unet, structure, features, tokens, core=64, statistics_pixels=128 * 128)
    step = (tiled - unet(structure, features, tokens)).diff(dim=-1).abs().amax((0, 1, 2))
    assert step[[63, 127, 191]].mean() > 1.2 * step.mean()


@torch.no_grad()
def test_the_unet_is_left_as_it_was(unet):
    structure, features, tokens = inputs(96, 96)
    before = unet(structure, features, tokens)
    paint_in_tiles(unet, structure, features, tokens, core=32, statistics_pixels=48 * 48)
    assert torch.equal(unet(structure, features, tokens), before)


MEMORY = """
import resource, torch
from splice_ff.networks.cross_attention_unet import CrossAttentionUNet, UNetConfig
from splice_ff.one_shot.tiles import paint_in_tiles
unet = CrossAttentionUNet(UNetConfig((16, 16, 32), 1, 1, 2, 4, 16), 12).eval()
structure = torch.rand(1, 3, 1024, 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
paint_in_tiles(unet, structure, torch.randn(1, 12, 6, 9), torch.randn(1, 4, 16), 192, 192**2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_memory_follows_the_tile_not_the_image():
    """111 MiB when written, libraries included; each map of 16 channels at the size of the whole image has 64."""
    made = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    assert int(made.stdout) / 1024 < 180, f"{int(made.stdout) / 1024:.0f} MiB"
