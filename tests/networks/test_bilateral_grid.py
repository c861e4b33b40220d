"""The bilateral grid of color maps: read as the textbook says, sharp where its guide is, cheap at full size."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from splice_ff import InputError
from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.bilateral_grid import (
    LUMA,
    Change,
    Guide,
    centers,
    recolor,
    recolor_at_full_size,
    recolor_in_bands,
    slice_grid,
)
from splice_ff.networks.cross_attention_unet import SIZES, CrossAttentionUNet, UNetConfig
from splice_ff.networks.joint_bilateral import edge_weights, upsample_along_edges
from splice_ff.training.dry_run import _PeakMemory
from splice_ff.utils.resize import guided_upsample

GRID = UNetConfig((16, 16, 32), 1, 1, 2, 4, 16, bins=5, parts=2)
WIDTH = 12
CPU = torch.device("cpu")


@pytest.fixture
def unet(randomized):
    """Random, and paints strongly."""
    unet = randomized(CrossAttentionUNet(GRID, WIDTH)).eval()
    unet.color_affine.weight.data *= 2
    return unet


def inputs(h, w, batch=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    structure = F.interpolate(torch.rand(batch, 3, 5, 7, generator=random), (h, w), mode="bicubic").clamp(0, 1)
    tokens = torch.randn(batch, GRID.tokens, GRID.token_channels, generator=random)
    return structure, torch.randn(batch, WIDTH, 3, 4, generator=random), tokens


def naive_slice(grid, guide, rows, columns):
    """Trilinear interpolation, one pixel and one corner at a time."""
    b, c, d, h, w = grid.shape
    out = torch.zeros(b, c, len(rows), len(columns))
    for n in range(b):
        for i, row in enumerate(rows.tolist()):
            for j, column in enumerate(columns.tolist()):
                places = (guide[n, 0, i, j].item() * d - 0.5, row - 0.5, column - 0.5)
                places = [min(max(p, 0), side - 1) for p, side in zip(places, (d, h, w), strict=True)]
                for corner in range(8):
                    at, weight = [], 1.0
                    for axis, (place, side) in enumerate(zip(places, (d, h, w), strict=True)):
                        low, up = math.floor(place), corner >> axis & 1
                        weight *= place - low if up else 1 - (place - low)
                        at.append(min(low + up, side - 1))
                    out[n, :, i, j] += weight * grid[n, :, at[0], at[1], at[2]]
    return out


def test_slicing_is_a_naive_loop():
    torch.manual_seed(0)
    grid, guide = torch.randn(2, 3, 4, 3, 5), torch.rand(2, 1, 11, 14) * 1.4 - 0.2  # beyond both ends too
    rows, columns = centers(11, 2.6, CPU), centers(14, 5, CPU)
    torch.testing.assert_close(slice_grid(grid, guide, rows, columns), naive_slice(grid, guide, rows, columns))


def test_one_bin_is_bilinear_enlargement():
    grid = torch.randn(2, 3, 1, 4, 6)
    sliced = slice_grid(grid, None, centers(32, 4, CPU), centers(48, 6, CPU))
    expected = F.interpolate(grid[:, :, 0], (32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(sliced, expected)


def test_slicing_has_the_gradients_of_the_loop():
    torch.manual_seed(0)
    grid = torch.randn(1, 2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    rows, columns = centers(5, 2, CPU), centers(4, 3, CPU)
    guide = torch.rand(1, 1, 5, 4, requires_grad=True)
    slice_grid(grid, guide, rows, columns).square().sum().backward()
    with torch.no_grad():
        for tensor, at in ((grid, (0, 1, 1, 0, 2)), (guide, (0, 0, 2, 1))):
            values = []
            for step in (1e-2, -1e-2):
                changed = tensor.clone()
                changed[at] += step
                pair = (changed, guide) if tensor is grid else (grid, changed)
                values.append(naive_slice(*pair, rows, columns).square().sum())
            expected = (values[0] - values[1]) / 2e-2
            assert tensor.grad[at].item() == pytest.approx(expected.item(), rel=2e-2)


def test_the_guide_is_luma_at_first():
    image = torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(Guide()(image), (image * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True))
    gray = torch.linspace(0, 1, 50).expand(1, 3, 1, 50)
    assert (Guide()(gray)[0, 0, 0].diff() > 0).all()


def step_edge(side, at):
    """Dark left of a column, light from there on, (1, 3, side, side)."""
    return torch.where(torch.arange(side) < at, 0.2, 0.8).expand(1, 3, side, side).clone()


@pytest.mark.parametrize("bins", [8, 1])
def test_a_step_of_the_grid_follows_the_guides_edge_and_not_the_cell(bins):
    """Dark is left alone, light is turned blue: within a pixel of the edge with a guide, over a cell without."""
    grid = torch.zeros(1, 12, bins, 4, 4)
    if bins > 1:
        grid[:, 11, bins // 2 :] = 3.0  # the shift of blue
    else:
        grid[:, 11, :, :, 2:] = 3.0  # all that a map can say: the right half
    image = step_edge(64, 36)  # no border of cells of 16
    rows = columns = centers(64, 4, CPU)
    painted = recolor(image, grid.flatten(1, 2), torch.zeros_like(image), Guide() if bins > 1 else None, rows, columns)
    change = (painted - image)[0, 2]
    left, right = change[:, 30:36], change[:, 36:42]
    if bins > 1:
        assert left.abs().max() < 1e-4 and right.min() > 0.1
        assert change[:, 36:].std() < 1e-4  # the same at the edge as far from it
    else:
        assert left.max() > 0.1


def test_full_size_is_sharper_than_an_enlarged_image():
    """What a grid does to dark and light is done at the large image's own edge."""
    full = step_edge(256, 147)
    small = F.interpolate(full, (32, 32), mode="area")
    grid = torch.zeros(1, 12, 8, 4, 4)
    grid[:, 11, 4:] = 3.0
    change = Change(grid.flatten(1, 2), torch.zeros_like(small), (4.0, 4.0))
    painted = recolor_at_full_size(small, change, Guide(), full)
    truth = recolor(full, change.grid, torch.zeros_like(full), Guide(), *[centers(256, 4, CPU)] * 2)
    enlarged = guided_upsample(recolor_in_bands(small, change, Guide()), small, full)
    near = slice(140, 154)
    torch.testing.assert_close(painted, truth, atol=1e-5, rtol=0)
    assert (enlarged - truth)[..., near].abs().mean() > 0.01


def test_bands_are_the_whole(monkeypatch, unet):
    structure, features, tokens = inputs(37, 50, batch=2)
    with torch.no_grad():
        whole = unet(structure, features, tokens)
        monkeypatch.setattr("splice_ff.networks.bilateral_grid.BAND", 500)
        banded = recolor_in_bands(structure, unet.change(structure, features, tokens), unet.guide)
    assert (whole - structure).abs().mean() > 0.05
    torch.testing.assert_close(banded, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("full", "working"), [((74, 100), (37, 50)), ((41, 30), (41, 30)), ((20, 27), (40, 54))])
def test_full_size_agrees_with_the_working_size(unet, full, working):
    """Reduced again, a smooth image painted at full size is nearly what was painted at the working size."""
    image, features, tokens = inputs(*full)
    small = F.interpolate(image, working, mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        painted = unet(small, features, tokens, image)
        expected = unet(small, features, tokens)
    assert painted.shape == image.shape and painted.min() >= 0 and painted.max() <= 1
    least = min(full, working)
    again, reduced = (F.interpolate(x, least, mode="bicubic", antialias=True) for x in (painted, expected))
    assert (again - reduced).abs().mean() < 0.01 < 0.05 < (expected - small).abs().mean()


@pytest.mark.parametrize("name", [name for name in SIZES if "grid" in name])
def test_untrained_it_copies_at_every_size(name):
    net = AmortizedGenerator(GeneratorConfig(3, WIDTH, SIZES[name])).eval()
    full, features, _ = inputs(67, 45)
    small = F.interpolate(full, (33, 22), mode="bicubic").clamp(0, 1)
    tokens = torch.randn(1, SIZES[name].tokens, SIZES[name].token_channels)
    for image in (full, small):
        torch.testing.assert_close(net.paint(small, features, tokens, image), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(net.paint(full, features, tokens), full, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 50), (17, 16), (24, 31)])
def test_any_size(unet, h, w):
    structure, features, tokens = inputs(h, w)
    for full in (None, F.interpolate(structure, (3 * h, 3 * w))):
        output = unet(structure, features, tokens, full)
        assert output.shape == (full if full is not None else structure).shape and output.isfinite().all()


def test_every_weight_of_the_head_learns(randomized):
    net = randomized(AmortizedGenerator(GeneratorConfig(3, WIDTH, GRID)))
    structure, features, _ = inputs(24, 16, batch=2)
    net(structure, features, torch.randn(2, 3, WIDTH)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(unet, dtype):
    full, features, tokens = inputs(60, 48)
    small = F.interpolate(full, (30, 24), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        expected = unet(small, features, tokens, full)
        output = unet.to(dtype)(small, features, tokens, full)
    assert output.dtype == torch.float32 and (output - expected).abs().mean() < 0.03


def test_autocast_keeps_places_exact(unet):
    """Places in bfloat16 would be off by whole pixels."""
    grid = torch.rand(1, 12, 8, 16, 16)
    guide = torch.rand(1, 1, 256, 256)
    rows = columns = centers(256, 16, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            slice_grid(grid, guide, rows, columns), slice_grid(grid.float(), guide, rows, columns), atol=0, rtol=0
        )
        assert slice_grid(grid, guide, rows, columns).dtype == torch.float32


@torch.no_grad()
def test_4k_takes_a_slice_in_bounded_memory():
    """Simulated: 3840 x 2160 from a pass at 256 px takes less than 5 images of that size in float32."""
    config = SIZES["tiny-grid"]
    with torch.device("meta"):
        unet = CrossAttentionUNet(config, 192).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet.to_empty(device="cpu")
        full, small = torch.rand(1, 3, 2160, 3840), torch.rand(1, 3, 256, 455)
        features, tokens = torch.rand(1, 192, 14, 25), torch.rand(1, config.tokens, config.token_channels)
        memory = _PeakMemory([])
        with memory, FlopCounterMode(display=False) as work:
            output = unet(small, features, tokens, full)
        with FlopCounterMode(display=False) as at_working_size:
            unet(small, features, tokens)
    image = full.numel() * 4
    assert output.shape == full.shape
    assert memory.at_peak.total() < 5 * image, memory.at_peak.total() / image
    guide = 2 * 8 * 4 * full[0, 0].numel()  # multiplications and additions of its network
    assert work.get_total_flops() < at_working_size.get_total_flops() + 1.1 * guide


@pytest.mark.parametrize("parts", [1, 2])
def test_cells_are_divided_along_edges(randomized, parts):
    unet = randomized(CrossAttentionUNet(replace(GRID, parts=parts), WIDTH)).eval()
    grids = []
    unet.color_affine.register_forward_hook(lambda _, __, grid: grids.append(grid))
    structure, features, tokens = inputs(20, 31)
    with torch.no_grad():
        grid = unet.change(structure, features, tokens).grid
    padded = F.pad(structure, (0, 1, 0, 0), mode="reflect")
    expected = grids[0] if parts == 1 else upsample_along_edges(grids[0], edge_weights(padded, 2, parts))
    assert torch.equal(grid, expected) and grid.shape[-2:] == (10 * parts, 16 * parts)
    assert grid.shape[-1] * unet.cell == 32


@pytest.mark.parametrize("parts", [0, 3, 1.0, "2"])
def test_parts_that_no_cell_has(parts):
    with pytest.raises(InputError, match="parts"):
        UNetConfig((8, 16, 16), 1, 1, 2, 4, 16, bins=8, parts=parts)


@pytest.mark.parametrize("bins", [0, -1, 1.5, "8", 10**6])
def test_bins_that_no_grid_has(bins):
    with pytest.raises(InputError, match="bins"):
        UNetConfig((8, 16, 16), 1, 1, 2, 4, 16, bins=bins)


@pytest.mark.parametrize("channels", [(), (16,), (8, 16), (8,) * 9])
def test_scales_that_no_unet_has(channels):
    with pytest.raises(InputError, match=f"3 to 8 scales, not {len(channels)}"):
        UNetConfig(channels, 1, 1, 2, 4, 16)
