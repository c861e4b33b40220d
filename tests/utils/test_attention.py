import pytest
import torch
import torch.nn.functional as F

from splice_ff.utils.attention import MOST_TOKENS, attention, prefers_plain_attention


def heads(tokens, dtype, seed=0):
    return torch.randn(2, 3, tokens, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (5, 5), (9, 2)])
def test_attention_is_a_softmax_of_products(dtype, queries, keys):
    q, k, v = heads(queries, dtype), heads(keys, dtype, 1), heads(keys, dtype, 2)
    wanted = torch.softmax(q.double() @ k.double().mT / 8**0.5, -1) @ v.double()
    error = (attention(q, k, v).double() - wanted).norm() / wanted.norm()
    assert error < (1e-6 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize(
    ("device", "dtype", "tokens", "is_plain"),
    [
        ("cpu", torch.bfloat16, MOST_TOKENS, True),
        ("cpu", torch.bfloat16, MOST_TOKENS + 1, False),
        ("cpu", torch.float32, 64, False),
        ("cuda", torch.bfloat16, 64, False),
        ("mps", torch.bfloat16, 64, False),
    ],
)
def test_the_kernel_is_chosen_by_device_precision_and_size(device, dtype, tokens, is_plain):
    assert prefers_plain_attention(torch.device(device), dtype, tokens) == is_plain


def test_autocast_decides_on_the_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert prefers_plain_attention(torch.device("cpu"), torch.float32, 64)


@pytest.mark.parametrize("family", ["dino", "dinov2_reg", "dinov3"])
def test_a_vit_in_bfloat16_takes_plain_products_and_its_features_stay(families, family, monkeypatch):
    backbone = families(family).with_matmuls_in(torch.bfloat16)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def features(is_plain):
        monkeypatch.setattr("splice_ff.vit.features.prefers_plain_attention", lambda *_: is_plain)
        with torch.autocast("cpu", torch.bfloat16):
            return backbone(images, cls=True).cls

    fused = features(False)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    monkeypatch.setattr("splice_ff.utils.attention.prefers_plain_attention", lambda *_: True)
    plain = features(True)
    assert (plain - fused).norm() / fused.norm() < 0.02
    assert all(block.attn.fused_attn for block in backbone.vit.blocks)


def test_without_autocast_it_stays_fused(tiny_backbone, monkeypatch):
    backbone, seen = tiny_backbone(), []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: seen.append(1) or fused(*a, **k))
    backbone(torch.rand(1, 3, 48, 48), cls=True)
    assert len(seen) == backbone.depth
