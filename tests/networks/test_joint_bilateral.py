"""Joint bilateral upsampling of a grid: the equation, and that what looks alike takes the same maps."""

import torch

from splice_ff.networks import joint_bilateral
from splice_ff.networks.joint_bilateral import FLOOR, SIGMA_COLOR, SIGMA_SPACE, edge_weights, upsample_along_edges
from splice_ff.utils.seeding import seeded_generator

CELL, PARTS = 8, 2


def photo(height, width, batch=1):
    return torch.rand(batch, 3, height * CELL, width * CELL, generator=seeded_generator(0))


def divided(grid, images):
    return upsample_along_edges(grid, edge_weights(images, CELL, PARTS))


def naive(grid, images, floor=FLOOR):
    """The equation, part by part."""
    _, channels, height, width = grid.shape
    result = torch.empty(1, channels, height * PARTS, width * PARTS)
    side = CELL // PARTS
    for y in range(height * PARTS):
        for x in range(width * PARTS):
            color = images[0, :, y * side : (y + 1) * side, x * side : (x + 1) * side].mean((1, 2))
            total, weights = torch.zeros(channels), 0.0
            for v in range(max(y // PARTS - 1, 0), min(y // PARTS + 2, height)):
                for u in range(max(x // PARTS - 1, 0), min(x // PARTS + 2, width)):
                    other = images[0, :, v * CELL : (v + 1) * CELL, u * CELL : (u + 1) * CELL].mean((1, 2))
                    away = ((y + 0.5) / PARTS - v - 0.5) ** 2 + ((x + 0.5) / PARTS - u - 0.5) ** 2
                    unlike = (color - other).square().sum().item()
                    weight = torch.tensor(-away / (2 * SIGMA_SPACE**2)).exp().item()
                    weight *= torch.tensor(-unlike / (2 * SIGMA_COLOR**2)).exp().item() + floor
                    total, weights = total + weight * grid[0, :, v, u], weights + weight
            result[0, :, y, x] = total / weights
    return result


def test_it_computes_the_equation():
    images, grid = photo(3, 4), torch.randn(1, 5, 3, 4, generator=seeded_generator(1))
    torch.testing.assert_close(divided(grid, images), naive(grid, images), atol=1e-5, rtol=1e-4)


def test_images_of_a_batch_do_not_mix():
    images, grid = photo(3, 4, batch=2), torch.randn(2, 5, 3, 4, generator=seeded_generator(1))
    together = divided(grid, images)
    for i in range(2):
        alone = divided(grid[i : i + 1], images[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_a_constant_grid_stays_what_it_is():
    grid = torch.full((1, 2, 3, 4), 1.5)
    torch.testing.assert_close(divided(grid, photo(3, 4)), torch.full((1, 2, 6, 8), 1.5))


def test_maps_keep_to_their_side_of_an_edge_within_a_cell():
    """The map of a cell that is half black and half white is half way, and neither half of the cell takes it."""
    images = torch.zeros(1, 3, 3 * CELL, 3 * CELL)
    images[..., CELL + CELL // 2 :] = 1.0
    grid = torch.tensor([0.0, 0.5, 1.0]).expand(1, 1, 3, 3)
    torch.testing.assert_close(
        divided(grid, images), torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(1, 1, 6, 6), atol=1e-3, rtol=0
    )


def test_where_nothing_is_alike_the_nearest_cells_count(monkeypatch):
    grid, images = torch.randn(1, 5, 3, 4, generator=seeded_generator(1)), photo(3, 4)
    monkeypatch.setattr(joint_bilateral, "SIGMA_COLOR", 1e-4)
    torch.testing.assert_close(divided(grid, images), naive(grid, images, floor=1e6), atol=1e-4, rtol=1e-3)


def test_gradients_reach_the_grid_and_not_the_images():
    images, grid = photo(3, 4).requires_grad_(), torch.randn(1, 5, 3, 4).requires_grad_()
    divided(grid, images).sum().backward()
    assert images.grad is None
    torch.testing.assert_close(grid.grad.sum(), torch.tensor(5.0 * 12 * PARTS**2))  # the weights of a part sum up to 1


def test_half_precision_does_not_round_the_weights():
    images, grid = photo(3, 4), torch.randn(1, 5, 3, 4, generator=seeded_generator(1))
    expected = divided(grid, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(divided(grid, images), expected)
