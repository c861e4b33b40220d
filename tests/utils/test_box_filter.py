"""The box filter is a mean over squares, with the border repeated."""

import pytest
import torch
import torch.nn.functional as F

from splice_ff.utils.box_filter import box_filter


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
@pytest.mark.parametrize(("height", "width"), [(9, 13), (1, 1), (2, 30)])
def test_it_is_average_pooling_of_the_padded_images(radius, height, width):
    images = torch.rand(2, 4, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    torch.testing.assert_close(box_filter(images, radius), F.avg_pool2d(padded, 2 * radius + 1, stride=1))
