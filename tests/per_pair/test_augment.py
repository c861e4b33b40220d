import colorsys
from itertools import pairwise

import pytest
import torch

from splice_ff.per_pair.augment import LEAST_ZOOM, appearance_views, same_similarity, structure_views

VIEWS = [structure_views, appearance_views]
SHAPES = {"square": (100, 100), "landscape": (40, 60), "portrait": (60, 40), "nearly square": (41, 40)}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed))


def coordinates(height, width):
    """An image whose pixels say where they are: red the row, green the column (both / 255), blue 0.5."""
    rows = torch.arange(height).view(-1, 1).expand(-1, width) / 255
    columns = torch.arange(width).expand(height, -1) / 255
    return torch.stack([rows, columns, torch.full((height, width), 0.5)])[None]


def crop_of(view, height, width):
    """(top, left, flipped) if the view is an exact crop of `coordinates(height, width)`, else None.

    `left` is counted in the flipped image, where it is flipped.
    """
    image, size = coordinates(height, width), view.shape[-1]
    top, left = (view[0, :2, 0, 0] * 255).round().int().tolist()
    flipped = bool(view[0, 1, 0, 0] > view[0, 1, 0, -1])
    if flipped:
        image, left = image.flip(-1), width - 1 - left
    exact = image[..., top : top + size, left : left + size]
    return (top, left, flipped) if exact.shape == view.shape and torch.equal(exact, view) else None


# ---------------------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("views", VIEWS)
def test_a_seed_says_all(views):
    image = noise(2, 3, 40, 60)

    def draw(seed):
        generator = seeded(seed)
        return [views(image, generator) for _ in range(8)]

    one, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairwise(one))


@pytest.mark.parametrize("views", VIEWS)
def test_torchs_own_generator_plays_no_part(views):
    image = noise(1, 3, 40, 60)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = [views(image, generator) for generator in [seeded(0)] for _ in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = [views(image, generator) for generator in [seeded(0)] for _ in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("views", VIEWS)
def test_images_are_left_as_they_were(views):
    image = noise(1, 3, 40, 60)
    before = image.clone()
    for seed in range(10):
        views(image, seeded(seed))
    assert torch.equal(image, before)


# ------------------------------------------------------------------------------------------------ crops and flips


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_crops_are_squares_of_95_to_100_percent_of_the_height(views, shape):
    height, width = shape
    image, generator = noise(1, 3, height, width), seeded(0)
    sizes = set()
    for _ in range(80):
        view = views(image, generator)
        assert view.shape == (1, 3, view.shape[-1], view.shape[-1])
        sizes.add(view.shape[-1])
    assert sizes == {min(size, width) for size in range(round(0.95 * height), height + 1)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_appearance_views_are_crops_from_anywhere(shape):
    height, width = shape
    image, generator = coordinates(height, width), seeded(0)
    margins, crops = [], []
    for _ in range(400):
        view = appearance_views(image, generator)
        crop = crop_of(view, height, width)
        assert crop is not None  # every pixel is the image's own, at its place
        margins.append((height - view.shape[-1], width - view.shape[-1]))
        crops.append(crop)
    for axis in (0, 1):
        furthest = max(margin[axis] for margin in margins)
        positions = [crop[axis] for crop in crops]
        assert set(positions) == set(range(furthest + 1))  # everywhere between the borders
        touching = [crop[axis] == margin[axis] for crop, margin in zip(crops, margins, strict=True)]
        assert any(touching)
    assert 160 < sum(flipped for _, _, flipped in crops) < 240


def test_structure_views_flip_and_crop_likewise():
    image, generator = coordinates(40, 60), seeded(0)
    crops = [crop for _ in range(400) if (crop := crop_of(structure_views(image, generator), 40, 60))]
    assert {left for _, left, _ in crops} >= {0, 22} and {top for top, _, _ in crops} == {0, 1, 2}
    assert 0.38 < sum(flipped for _, _, flipped in crops) / len(crops) < 0.62


# ------------------------------------------------------------------------------------------------- color and blur


def test_structure_views_sometimes_change_colors():
    """Jitter every other time and blur every fifth: 60 % are not plain crops."""
    image, generator = coordinates(40, 60), seeded(0)
    changed = sum(crop_of(structure_views(image, generator), 40, 60) is None for _ in range(400))
    assert 200 < changed < 280


def test_blur_happens_every_fifth_time():
    """Seen in a checkerboard of two grays whose mean no jitter of colors could give to one pixel alone."""
    board = ((torch.arange(40).view(-1, 1) + torch.arange(40)) % 2).float().expand(1, 3, -1, -1) * 0.2 + 0.4
    generator, blurred = seeded(0), 0
    for _ in range(400):
        inside = structure_views(board, generator)[0, 0, 2:-2, 2:-2]
        contrast = (inside.max() - inside.min()) / inside.mean()  # 0.4, times 0.6 to 1.4 where jittered
        blurred += bool(contrast < 0.4 * 0.59)
    assert 25 < blurred < 110  # weak blurs and lucky jitter hide some


def test_jitter_of_brightness():
    """Of a gray image no other jitter nor blur changes anything."""
    image, generator = torch.full((1, 3, 20, 20), 0.5), seeded(0)
    factors = [(structure_views(image, generator).mean() / 0.5).item() for _ in range(400)]
    jittered = [factor for factor in factors if abs(factor - 1) > 1e-3]
    assert 160 < len(jittered) < 240
    assert 0.6 <= min(jittered) < 0.65 and 1.35 < max(jittered) <= 1.4 + 1e-6


def test_jitter_of_hue():
    """Of an image of one color brightness, contrast and saturation keep the hue."""
    color = (0.5, 0.3, 0.2)
    image, generator = torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, 20, 20), seeded(0)
    hue = colorsys.rgb_to_hsv(*color)[0]
    shifts = []
    for _ in range(400):
        shift = colorsys.rgb_to_hsv(*structure_views(image, generator)[0, :, 5, 5].tolist())[0] - hue
        shifts.append((shift + 0.5) % 1 - 0.5)
    assert -0.101 < min(shifts) < -0.09 and 0.09 < max(shifts) < 0.101
    assert 160 < sum(abs(shift) > 1e-4 for shift in shifts) < 240


def test_jitter_of_contrast():
    """The difference of two grays relative to their sum, where their mean is the image's."""
    image, generator = torch.full((1, 3, 20, 20), 0.3), seeded(0)
    image[..., 10:, :] = 0.5
    factors = []
    for _ in range(400):
        column = structure_views(image, generator)[0, 0, :, 10]
        factors.append(((column.max() - column.min()) / (column.max() + column.min())).item() / 0.25)
    assert 0.599 < min(factors) < 0.65 and 1.35 < max(factors) < 1.401


def test_jitter_of_saturation():
    """The range of a color's channels relative to the difference of two grays: all else changes both alike."""
    image, generator = torch.full((1, 3, 20, 20), 0.3), seeded(0)
    image[..., 7:14, :] = 0.5
    image[..., 14:, :] = torch.tensor((0.5, 0.3, 0.2)).view(3, 1, 1)
    factors = []
    for _ in range(400):
        dark, light, color = structure_views(image, generator)[0, :, (3, 10, 17), 10].unbind(1)
        factors.append(((color.max() - color.min()) / (light - dark).mean()).item() / 1.5)
    assert 0.799 < min(factors) < 0.83 and 1.17 < max(factors) < 1.201
    assert 160 < sum(abs(factor - 1) > 1e-3 for factor in factors) < 240


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize(
    "image",
    [torch.ones(1, 3, 24, 24), torch.zeros(1, 3, 24, 24), noise(1, 3, 24, 30).round(), noise(1, 3, 30, 24)],
    ids=["white", "black", "extreme", "noise"],
)
def test_views_stay_in_range(views, image):
    generator = seeded(0)
    for _ in range(60):
        view = views(image, generator)
        assert view.min() >= 0 and view.max() <= 1


# -------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("views", VIEWS)
def test_a_batch_gives_one_view_an_image(views):
    for seed in range(20):
        view = views(noise(5, 3, 40, 60), seeded(seed))
        assert view.shape[:2] == (5, 3) and view.shape[-2] == view.shape[-1]


def test_views_of_a_batch_keep_its_order_and_are_drawn_one_by_one():
    batch = coordinates(40, 60).repeat(8, 1, 1, 1)
    batch[:, 2] = (torch.arange(8) / 255).view(-1, 1, 1)
    generator = seeded(0)
    tops, lefts, flips = set(), set(), set()
    for _ in range(10):
        views = appearance_views(batch, generator)
        for i, view in enumerate(views.split(1)):
            assert torch.equal(view[0, 2], torch.full_like(view[0, 2], i / 255))
            view[0, 2] = 0.5
            top, left, flipped = crop_of(view, 40, 60)
            tops.add((i, top))
            lefts.add(left)
            flips.add((i, flipped))
    assert flips == {(i, flipped) for i in range(8) for flipped in (True, False)}
    assert {top for _, top in tops} == {0, 1, 2} and len(lefts) > 15
    views = appearance_views(coordinates(40, 60).repeat(8, 1, 1, 1), generator)
    drawn = [crop_of(view, 40, 60) for view in views.split(1)]
    assert len(set(drawn)) > 4


def test_structure_views_of_a_batch_are_jittered_one_by_one():
    batch = torch.full((16, 3, 20, 20), 0.5)
    levels = structure_views(batch, seeded(0)).mean((1, 2, 3))
    assert 3 <= (levels - 0.5).abs().gt(1e-3).sum() <= 13
    assert len({round(level, 4) for level in levels.tolist()}) >= 4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_similarity_is_the_same_for_all_batches_and_keeps_angles(shape):
    image = coordinates(*shape)
    directions = set()
    for seed in range(20):
        one, other = same_similarity([image, image.expand(2, -1, -1, -1)], seeded(seed))
        assert one.shape == image.shape and torch.allclose(one.expand_as(other), other)
        middle = [side // 2 for side in shape]
        rows, columns = (one[0, channel] * 255 for channel in (0, 1))
        down = torch.stack([x[middle[0] + 3, middle[1]] - x[middle[0] - 3, middle[1]] for x in (rows, columns)]) / 6
        across = torch.stack([x[middle[0], middle[1] + 3] - x[middle[0], middle[1] - 3] for x in (rows, columns)]) / 6
        assert abs(down @ across) < 0.02, "a shear"
        assert down.norm() == pytest.approx(across.norm().item(), abs=0.02), "a stretch"
        assert LEAST_ZOOM - 0.02 < down.norm() < 1.02 and down[0] > 0.9 * down.norm()
        directions.add(across[1].sign().item())
    assert directions == {-1, 1}, "flipped sometimes, not always"


def test_similarities_differ_and_pass_gradients():
    image = noise(1, 3, 40, 60).requires_grad_()
    generator = seeded(0)
    views = [same_similarity([image], generator)[0] for _ in range(10)]
    assert len({round(view.mean().item(), 6) for view in views}) == 10
    (gradient,) = torch.autograd.grad(views[0].sum(), image)
    assert gradient.ne(0).float().mean() > 0.6
