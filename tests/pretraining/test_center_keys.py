"""Keys moved to a mean of 0: attention does not notice, and similarities show what sets places apart."""

import pytest
import torch

from splice_ff.pretraining.student import center_keys
from splice_ff.vit.features import self_similarity


@pytest.mark.parametrize("count", [5, 40])  # more than go through the ViT at once, and no multiple of that
def test_the_mean_is_0_and_what_the_vit_computes_stays(tiny_backbone, count):
    backbone = tiny_backbone()
    last, width = backbone.depth - 1, backbone.width
    with torch.no_grad():
        backbone.vit.blocks[last].attn.qkv.bias[width : 2 * width] += 1.0
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    see = lambda: backbone(images, tokens=range(backbone.depth), cls=True, keys=[last])  # noqa: E731
    before, (first, *_) = see(), backbone.vit.blocks
    earlier = first.attn.qkv.bias.clone()
    center_keys(backbone, images)
    after = see()
    patches = after.keys[last][:, :, backbone.prefix_tokens :]
    assert before.keys[last].mean() > 0.5 and patches.mean((0, 2)).abs().max() < 1e-5
    assert all(torch.allclose(after.tokens[i], before.tokens[i], atol=1e-4) for i in before.tokens)
    assert torch.allclose(after.cls, before.cls, atol=1e-4) and torch.equal(first.attn.qkv.bias, earlier)
    contrast = [
        (s - s.roll(1, 0)).square().mean() for s in (self_similarity(seen.keys[last]) for seen in (before, after))
    ]
    assert contrast[1] > 2 * contrast[0]
