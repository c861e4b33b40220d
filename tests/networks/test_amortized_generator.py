"""The amortized generator: appearance encoder and cross-attention UNet."""

from dataclasses import replace
from typing import get_type_hints

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from splice_ff import InputError
from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.appearance_encoder import AppearanceEncoder
from splice_ff.networks.cross_attention_unet import SIZES, CrossAttentionUNet, UNetConfig, _Conv
from splice_ff.networks.layers import CrossAttention

LAYERS, WIDTH = 3, 24
SMALL = UNetConfig((8, 16, 16), 1, 1, 2, 16, 16)


@pytest.fixture
def generator(randomized):
    return lambda context="cls", seed=0: randomized(
        AmortizedGenerator(GeneratorConfig(LAYERS, WIDTH, SMALL, context)), seed
    ).eval()


def inputs(batch=2, h=24, w=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    structure = torch.rand(batch, 3, h, w, generator=random)
    features = torch.randn(batch, WIDTH, 3, 2, generator=random)
    cls = torch.randn(batch, LAYERS, WIDTH, generator=random)
    return structure, features, cls


@pytest.mark.parametrize("network", [AmortizedGenerator, CrossAttentionUNet])
def test_what_forward_returns_is_said(network):
    assert get_type_hints(network.forward)["return"] == Tensor | tuple[Tensor, Tensor]


def test_pixels_come_with_a_full_size_too(generator):
    net, (structure, features, cls) = generator(), inputs()
    tokens, full = net.encoder(cls), F.interpolate(structure, (48, 32))
    painted, pixels = net.unet(structure, features, tokens, full, with_pixels=True)
    assert painted.equal(net.unet(structure, features, tokens, full)) and painted.shape == full.shape
    assert pixels.equal(net.unet(structure, features, tokens, with_pixels=True)[1])


def test_an_untrained_generator_copies():
    structure, features, cls = inputs()
    output = AmortizedGenerator(GeneratorConfig(LAYERS, WIDTH, SMALL))(structure, features, cls)
    torch.testing.assert_close(output, structure, atol=1e-5, rtol=0)


def test_output_depends_on_everything_it_is_told(generator):
    net, (structure, features, cls) = generator(), inputs()
    output = net(structure, features, cls)
    assert output.shape == structure.shape and output.min() >= 0 and output.max() <= 1
    for changed in (
        (structure.flip(0), features, cls),
        (structure, features.flip(0), cls),
        (structure, features, cls.flip(0)),
    ):
        assert (net(*changed) - output).abs().max() > 1e-3


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_layers_cls_token_counts(generator, layer):
    net, (structure, features, cls) = generator(), inputs(1)
    other = cls.clone()
    other[:, layer] = cls[:, layer].roll(1, -1)
    assert (net(structure, features, other) - net(structure, features, cls)).abs().max() > 1e-4


def test_patches_join_the_context_only_where_asked_for(generator):
    structure, features, cls = inputs()
    patches = torch.randn(2, 6, WIDTH)
    with_patches = generator("cls+patches")
    changed = with_patches(structure, features, cls, patches.flip(0))
    assert (with_patches(structure, features, cls, patches) - changed).abs().max() > 1e-3
    # a context is a set
    torch.testing.assert_close(with_patches(structure, features, cls, patches.flip(1)),
                               with_patches(structure, features, cls, patches), atol=1e-5, rtol=1e-4)  # fmt: skip
    with pytest.raises(ValueError, match="cls\\+patches"):
        with_patches(structure, features, cls)
    with pytest.raises(ValueError, match="cls\\+patches"):
        generator()(structure, features, cls, patches)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (17, 16), (24, 31), (1, 1), (2, 50)])
def test_any_size(generator, h, w):
    structure, features, cls = inputs(1, h, w)
    output = generator()(structure, features, cls)
    assert output.shape == (1, 3, h, w) and torch.isfinite(output).all()


def test_padding_is_outside_the_image(generator):
    structure, features, cls = inputs(1, 24, 15)
    padded = F.pad(structure, (0, 1, 0, 0), mode="reflect")
    net = generator()
    torch.testing.assert_close(net(padded, features, cls)[..., :15], net(structure, features, cls))


def test_a_batch_equals_its_samples(generator):
    net, batch = generator(), inputs(3)
    together = net(*batch)
    alone = torch.cat([net(*(t[i : i + 1] for t in batch)) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_eval_is_deterministic(generator):
    net, batch = generator(), inputs()
    assert torch.equal(net(*batch), net(*batch))


def test_finite_in_bfloat16_and_near_float32(generator):
    net, batch = generator(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output = net(*batch)
    assert torch.isfinite(output).all()
    assert (output - net(*batch)).abs().mean() < 0.03


def test_checkpointing_gives_the_same_gradients(generator):
    gradients = []
    for checkpointing in (False, True):
        net = generator()
        net.unet.checkpointing = checkpointing
        net(*inputs()).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_all_parameters_get_gradients(generator):
    net = generator("cls+patches")
    net(*inputs(), torch.randn(2, 6, WIDTH)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_attention_differs_across_positions_and_heads_after_training():
    """A single key would make it constant; so would appearance tokens that are all alike."""
    torch.manual_seed(0)
    net = AmortizedGenerator(GeneratorConfig(LAYERS, WIDTH, SMALL))
    structure, features, cls = inputs(4, 16, 16)
    goal = torch.where(structure.mean(1, keepdim=True) > 0.5, cls[:, 0, :3, None, None], cls[:, 1, :3, None, None])
    goal = goal.sigmoid()
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    first = F.mse_loss(net(structure, features, cls), goal).item()
    for _ in range(60):
        loss = F.mse_loss(net(structure, features, cls), goal)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.5 * first
    tokens = net.encoder(cls)
    assert tokens.shape == (4, SMALL.tokens, SMALL.token_channels)
    assert tokens.std(1).mean() > 0.05  # appearance tokens differ from each other
    seen = []
    net.unet.down[-1].cross_attn[0].register_forward_pre_hook(lambda *call: seen.append(attention_weights(*call)))
    net(structure, features, cls)
    weights = seen[0]  # (B, heads, positions, tokens)
    assert weights.std(2).mean() > 1e-3  # across positions
    assert weights.std(1).mean() > 1e-3  # across heads


def attention_weights(attention, inputs):
    """What each query attends to, (B, heads, N, M), by the textbook's formula."""
    x, context = inputs
    keys = attention.to_kv(attention.context_norm(context)).chunk(2, -1)[0]
    queries, keys = (
        t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (attention.to_q(attention.norm(x)), keys)
    )
    return torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, -1)


def test_cross_attention_is_the_textbooks(randomized):
    attention = randomized(CrossAttention(8, 6, 2))
    x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    values = attention.to_kv(attention.context_norm(context)).chunk(2, -1)[1].unflatten(-1, (2, 4)).transpose(1, 2)
    y = (attention_weights(attention, (x, context)) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(x + attention.to_out(y), attention(x, context))


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="3 heads"):
        CrossAttention(8, 8, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", "patches"),
        *[(name, value) for name in ("layers", "width") for value in (0, -1, 1.5, True, "12", 10**9)],
        *[("channels", value) for value in ([], [8], [8, 8], [8] * 99, [8, 8, 0], [8, 8, "8"], [8, 8, 10**9])],
        *[("blocks", value) for value in (0, 10**9, None)],
        *[("attention_from", value) for value in (0, 3, -1)],
        *[(name, value) for name in ("heads", "tokens", "token_channels") for value in (0, 10**9, 2.0)],
    ],
)
def test_numbers_that_no_generator_has(name, value):
    """Refused before anything is allocated."""
    with pytest.raises(InputError, match=name.split("_")[0]):
        if name in GeneratorConfig.__dataclass_fields__:
            GeneratorConfig(**{"layers": LAYERS, "width": WIDTH} | {name: value})
        else:
            replace(SMALL, **{name: value})


def test_sizes_keep_their_promises():
    """Base: at most 60 M parameters and 60 GMACs at 256 px. All: at least 16 appearance tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = AmortizedGenerator(GeneratorConfig(12, 384, SIZES["base"]))
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 256, 256), torch.empty(1, 384, 28, 28), torch.empty(1, 12, 384))
    assert sum(p.numel() for p in net.parameters()) < 60e6
    assert counter.get_total_flops() / 2 < 60e9
    assert min(size.tokens for size in SIZES.values()) >= 16


def test_backbones_of_any_depth_and_width_serve(tiny_backbone):
    for changes in ({}, {"depth": 2, "embed_dim": 36, "num_heads": 3}, {"reg_tokens": 4}):
        backbone = tiny_backbone(**changes)
        net = AmortizedGenerator(GeneratorConfig(backbone.depth, backbone.width, SMALL, "cls+patches"))
        encoding = net.encode_images(backbone, torch.rand(2, 3, 24, 32))
        assert encoding.structure_features.shape == (2, backbone.width, 3, 4)
        assert encoding.cls.shape == (2, backbone.depth, backbone.width)
        assert encoding.patches.shape == (2, 12, backbone.width)
        keys = backbone(torch.rand(1, 3, 24, 32), keys=[-1]).keys[backbone.depth - 1]
        assert keys.shape[2] == 12 + backbone.prefix_tokens
        assert net(torch.rand(2, 3, 20, 20), encoding.structure_features, encoding.cls, encoding.patches).shape == (
            2,
            3,
            20,
            20,
        )


def test_encoder_and_unet_stand_alone():
    tokens = AppearanceEncoder(LAYERS, WIDTH, 16, 8, 2)(torch.randn(2, LAYERS, WIDTH))
    assert tokens.shape == (2, 16, 8)
    unet = CrossAttentionUNet(UNetConfig((8, 16, 16), 1, 1, 2, 16, 8), WIDTH)
    assert unet(torch.rand(2, 3, 9, 9), torch.randn(2, WIDTH, 2, 2), tokens).shape == (2, 3, 9, 9)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_border_is_repeated_in_both_ways_of_padding(monkeypatch, stride):
    convolution, x = _Conv(3, 4, stride), torch.rand(2, 3, 7, 9)
    eager = convolution(x)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), convolution.weight, convolution.bias, stride)
    torch.testing.assert_close(eager, expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(convolution(x), eager)
