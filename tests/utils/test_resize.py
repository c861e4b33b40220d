import torch
import torch.nn.functional as F

from splice_ff.utils.resize import guided_upsample


def scene(h, w):
    """Two flat halves with fine stripes, (1, 3, h, w): detail that a quarter of the size cannot hold."""
    halves = torch.where(torch.arange(w) < w // 2, 0.3, 0.7).expand(h, w)
    stripes = 0.1 * (torch.arange(w) % 4 < 2).float()
    return (halves + stripes).expand(1, 3, h, w).clone()


def test_recoloring_is_carried_to_the_fine_detail():
    large = scene(128, 192)
    small = F.interpolate(large, (32, 48), mode="area")

    def recolor(x):
        return torch.cat([1 - x[:, :1], 0.5 * x[:, 1:2], x[:, 2:]], 1)

    # stripes vanish in the small image, so only the edge between the halves tells the colors there
    result = guided_upsample(recolor(small), small, large)
    bicubic = F.interpolate(recolor(small), (128, 192), mode="bicubic")
    error = (result - recolor(large)).abs()
    assert result.shape == large.shape
    edge = slice(96 - 6, 96 + 6)
    assert error[..., edge].mean() < 0.5 * (bicubic - recolor(large)).abs()[..., edge].mean()


def test_reduced_again_it_is_the_output():
    torch.manual_seed(0)
    large = F.interpolate(torch.rand(1, 3, 12, 16), (96, 128), mode="bicubic").clamp(0, 1)
    small = F.interpolate(large, (48, 64), mode="area")
    output = F.interpolate(torch.rand(1, 3, 6, 8), (48, 64), mode="bicubic").clamp(0, 1)
    again = F.interpolate(guided_upsample(output, small, large), (48, 64), mode="area")
    assert (again - output).abs().mean() < 0.01


def test_range_and_flat_guides():
    result = guided_upsample(torch.rand(1, 3, 20, 20), torch.full((1, 3, 20, 20), 0.5), torch.full((1, 3, 50, 50), 0.5))
    assert result.min() >= 0 and result.max() <= 1 and result.isfinite().all()
