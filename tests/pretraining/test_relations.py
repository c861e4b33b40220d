"""Relations of a batch's images: what they depend on, what their loss means, and their part in distillation."""

import pytest
import torch

from splice_ff.pretraining.relations import relations, relations_loss


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def turned(x):
    """The same points, turned, enlarged and moved."""
    rotation = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1]))[0]
    return 3 * x @ rotation + 5


def test_they_are_products_seen_from_the_mean():
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    expected = torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]])
    assert torch.allclose(relations([points + 7], [2.0]), expected, atol=1e-5)


def test_turns_scales_and_moves_do_not_matter():
    points, tokens = torch.randn(16, 5), torch.randn(16, 24)
    wanted = relations([points], [1.0])
    assert torch.allclose(relations([turned(points)], [1.0]), wanted, atol=1e-4)
    assert relations_loss(turned(tokens), wanted) == pytest.approx(relations_loss(tokens, wanted).item(), rel=1e-3)


def test_each_vector_counts_by_its_weight_whatever_its_channels():
    few, many = torch.randn(8, 3), torch.randn(8, 300)
    alone = [relations([x], [1.0]) for x in (few, many)]
    assert torch.allclose(relations([few, many], [1.0, 0.0]), alone[0])
    assert torch.allclose(relations([few, many], [0.0, 1.0]), alone[1])
    assert torch.allclose(relations([few, few.repeat(1, 9)], [1.0, 1.0]), alone[0], atol=1e-5)
    few, many = (x / (x - x.mean(0)).std(0, correction=0) for x in (few, many))  # of variance 1, as its targets are
    alone = [relations([x], [1.0]) for x in (few, many)]
    assert torch.allclose(relations([few, many], [3.0, 1.0]), 0.75 * alone[0] + 0.25 * alone[1], atol=1e-5)


def test_the_loss_is_0_for_the_same_geometry_and_1_for_none():
    points = torch.randn(64, 4)
    wanted = relations([points], [1.0])
    wider = torch.cat([points, torch.zeros(64, 20)], 1)
    assert relations_loss(turned(wider), wanted) < 1e-6
    for tokens in (torch.ones(64, 24), torch.randn(64, 512)):
        assert relations_loss(tokens, wanted) == pytest.approx(1, abs=0.1)


def test_constant_tokens_have_a_finite_gradient():
    tokens = torch.ones(8, 6, requires_grad=True)
    relations_loss(tokens, relations([torch.randn(8, 3)], [1.0])).backward()
    assert tokens.grad.isfinite().all()


def test_distillation_adds_them_by_their_weight_and_learns_them(make):
    module, crops = make(relations=0.5, keys=0.0, patches=0, cls=1.0, deepest=1.0), torch.rand(6, 3, 32, 32)
    losses = module(crops)
    weights = {"cls": 1, "deepest": 1, "statistics": 1, "relations": 0.5}
    assert losses["total"].item() == pytest.approx(sum(w * losses[k].item() for k, w in weights.items()), rel=1e-5)
    assert "relations" not in make()(crops)
    adam = torch.optim.Adam(module.student.parameters(), 1e-3)
    for _ in range(20):
        adam.zero_grad()
        module(crops)["relations"].backward()
        adam.step()
    assert module(crops)["relations"] < 0.5 * losses["relations"]


def test_what_is_wanted_follows_the_weights_of_the_targets(make):
    crops = torch.rand(6, 3, 32, 32)
    module = make(relations=1.0, cls=0.0, deepest=0.0, statistics=2.0)
    targets = module._targets(crops)
    assert torch.allclose(targets.relations, relations(targets.cls[-1:], [1.0]), atol=1e-5)


def test_the_starts_cls_is_not_kept_beside_them(make):
    crops = torch.rand(6, 3, 32, 32)
    for options, kept in (
        ({}, {"kept_tokens", "kept_keys", "kept_cls"}),
        ({"relations": 1.0}, {"kept_tokens", "kept_keys"}),
    ):
        module = make(keep=1.0, **options)
        assert set(module.kept_targets) == set(module._targets(crops).kept) == kept
        assert module(crops)["keep"] < 1e-9
