import pytest
import torch

from splice_ff.utils.resize import resize_shorter_side


@pytest.mark.parametrize(("shape", "size", "expected"), [
    ((2, 3, 40, 60), 20, (2, 3, 20, 30)),
    ((1, 3, 60, 40), 20, (1, 3, 30, 20)),
    ((1, 1, 40, 60), 80, (1, 1, 80, 120)),
    ((1, 3, 33, 50), 22, (1, 3, 22, 33)),
])  # fmt: skip
def test_resize_shorter_side(shape, size, expected):
    assert resize_shorter_side(torch.rand(shape), size).shape == expected


def test_resize_leaves_what_fits():
    image = torch.rand(1, 3, 20, 30)
    assert resize_shorter_side(image, 20) is image


def test_resize_stays_in_range_at_hard_edges():
    edge = torch.zeros(1, 3, 20, 20)
    edge[..., 10:] = 1
    resized = resize_shorter_side(edge, 64)
    assert resized.min() == 0 and resized.max() == 1


def test_resize_is_antialiased():
    checkerboard = ((torch.arange(48)[:, None] + torch.arange(48)) % 2).float().expand(1, 3, 48, 48)
    inner = resize_shorter_side(checkerboard, 16)[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.1, rtol=0)
