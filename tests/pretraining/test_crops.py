"""Random crops: another one for each image, inside it; jitter and blur one by one."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from splice_ff.pretraining.config import ViewsConfig
from splice_ff.pretraining.crops import blur, crops, jitter, random_boxes

STILL = ViewsConfig(jitter=0, blur=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramps(count, side=40):
    """Red is the column, green the row, in steps of 6."""
    line = torch.arange(side, dtype=torch.uint8) * 6
    image = torch.stack([line.expand(side, side), line[:, None].expand(side, side), torch.zeros(side, side)])
    return image.to(torch.uint8).expand(count, -1, -1, -1).contiguous()


def test_boxes_lie_inside_and_have_the_areas_asked_for():
    boxes = random_boxes(2000, 100, (0.2, 0.5), generator())
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 100
    assert (width * height / 1e4 >= 0.2 - 1e-4).all() and (width * height / 1e4 <= 0.5 + 1e-4).all()
    assert (width / height >= 3 / 4 - 1e-3).all() and (width / height <= 4 / 3 + 1e-3).all()
    assert boxes[:, 0].min() < 3 and boxes[:, 2].max() > 97  # and they are everywhere
    whole = random_boxes(50, 10, (1.0, 1.0), generator())
    assert whole.min() >= 0 and whole.max() <= 10


def test_each_image_has_its_own_crop():
    found = crops(ramps(8), 16, (0.1, 0.4), STILL, generator())
    assert found.shape == (8, 3, 16, 16) and found.dtype == torch.float32
    assert len({tuple(c[:2].mean((-2, -1)).tolist()) for c in found}) == 8
    steps = (found[:, 0, :, 1:] - found[:, 0, :, :-1]).mean((-2, -1))
    assert (steps > 0).any() and (steps < 0).any()  # some are mirrored
    assert (found[:, 1, 1:] > found[:, 1, :-1]).all()  # none upside down
    assert found.min() >= 0 and found.max() <= 39 * 6 / 255


def test_crops_show_what_their_boxes_hold():
    found = crops(ramps(20), 12, (0.1, 0.5), STILL, generator(1))
    left, top, right, bottom = random_boxes(20, 40, (0.1, 0.5), generator(1)).T  # drawn first
    # the mean of a ramp is its value in the middle; pixel 0's center is at 0.5
    assert torch.allclose(found[:, 0].mean((-2, -1)), ((left + right) / 2 - 0.5) * 6 / 255, atol=0.01)
    assert torch.allclose(found[:, 1].mean((-2, -1)), ((top + bottom) / 2 - 0.5) * 6 / 255, atol=0.01)
    assert torch.allclose(
        found[:, 1, -1].mean(-1) - found[:, 1, 0].mean(-1), (bottom - top) * 11 / 12 * 6 / 255, atol=0.02
    )


def test_scaling_down_averages():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    found = crops(stripes, 8, (1.0, 1.0), STILL, generator())
    assert (found - 0.5).abs().max() < 0.13  # aliased they would be 0 or 1


def test_the_same_generator_the_same_crops():
    images = ramps(3)
    views = ViewsConfig(jitter=0.3, blur=0.5)
    assert torch.equal(
        crops(images, 8, (0.1, 1.0), views, generator(5)), crops(images, 8, (0.1, 1.0), views, generator(5))
    )
    assert not torch.equal(
        crops(images, 8, (0.1, 1.0), views, generator(5)), crops(images, 8, (0.1, 1.0), views, generator(6))
    )


@pytest.mark.parametrize("place", range(3))
def test_jitter_is_torchvisions_for_each_image(place):
    images = torch.rand(4, 3, 9, 7, generator=generator())
    factors = torch.ones(3, 4)
    factors[place] = torch.tensor([0.5, 0.9, 1.2, 1.6])
    change = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[place]
    wanted = torch.stack([change(image, f.item()) for image, f in zip(images, factors[place], strict=True)])
    # torchvision rounds the weights of gray to four digits
    assert torch.allclose(jitter(images, *factors), wanted, atol=2e-3)


def test_blur_is_torchvisions_for_each_image():
    images = torch.rand(3, 3, 20, 16, generator=generator())
    sigmas = torch.tensor([0.3, 1.0, 2.0])
    wanted = torch.stack(
        [TF.gaussian_blur(image, [9, 9], [s.item()] * 2) for image, s in zip(images, sigmas, strict=True)]
    )
    assert torch.allclose(blur(images, sigmas), wanted, atol=1e-5)
