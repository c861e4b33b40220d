"""Adversarial examples: within epsilon, in [0, 1], with a higher loss; and a student that learns from them."""

import pytest
import torch

from splice_ff.pretraining.adversary import moved_up
from splice_ff.pretraining.config import AdversaryConfig
from splice_ff.pretraining.distillation import fit_linear

EPSILON = 4 / 255


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_move_up_within_epsilon(norm, steps):
    torch.manual_seed(0)
    images, weights = 0.2 + 0.6 * torch.rand(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    loss = lambda x: (x * weights).sum()  # noqa: E731
    moved = moved_up(images, loss, EPSILON, AdversaryConfig(norm=norm, steps=steps))
    change = (moved - images).flatten(1)
    lengths = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert not moved.requires_grad and (lengths <= EPSILON * 1.001).all() and (lengths > 0.9 * EPSILON).all()
    best = weights.abs().sum() * EPSILON if norm == "linf" else weights.flatten(1).norm(dim=1).sum() * EPSILON
    assert loss(moved) - loss(images) > 0.6 * best


def test_images_stay_in_range():
    moved = moved_up(torch.ones(2, 3, 4, 4), torch.sum, EPSILON, AdversaryConfig())
    assert moved.min() >= 1 - EPSILON and moved.max() == 1


def test_the_adversary_raises_the_loss_and_leaves_no_gradient_of_the_weights(make):
    module, crops = make(), torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        calm = module(crops)
    moved = moved_up(crops, lambda x: module._losses(x, module._targets(crops))["total"], EPSILON, AdversaryConfig())
    assert all(p.grad is None for p in module.parameters())
    with torch.no_grad():
        assert module._losses(moved, module._targets(crops))["total"] > calm["total"]
    losses = module(crops, EPSILON)
    assert set(losses) == {"total", "patches", "cls", "deepest", "statistics", "keys"}
    losses["total"].backward()
    assert module.student.vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_what_the_start_made_of_crops_is_kept(make):
    module, crops = make(keep=1.0), torch.rand(6, 3, 32, 32)
    assert module(crops)["keep"] < 1e-9, "an unmoved student is its start"
    assert not any(name.startswith("_start") for name in module.state_dict())
    with torch.no_grad():
        for parameter in module.student.vit.blocks.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    losses = module(crops, EPSILON)
    assert losses["keep"] > 0.01 and losses["keys"] > 0
    similarity = module._targets(crops).similarity
    assert torch.allclose(similarity, module._similarity(module._start[0](crops, **module._deepest)))
    adam = torch.optim.Adam(module.student.parameters(), 1e-3)
    first = module(crops)["keep"].item()
    for _ in range(20):
        adam.zero_grad()
        module(crops)["keep"].backward()
        adam.step()
    assert module(crops)["keep"] < 0.5 * first


def test_the_moving_average_follows_and_is_what_is_kept(make):
    module = make(ema_decay=0.9)
    assert module.product is module.averaged is not module.student
    weight = lambda student: student.vit.blocks[0].mlp.fc1.weight  # noqa: E731
    with torch.no_grad():
        weight(module.student).add_(1.0)
    before = weight(module.averaged).clone()
    module.update_average(step=10_000)
    assert torch.allclose(weight(module.averaged) - before, torch.full_like(before, 0.1), atol=1e-5)
    assert make().product is make().student or make().averaged is None


def test_heads_start_as_the_ridge_regression():
    torch.manual_seed(0)
    x, weight = torch.randn(200, 5), torch.randn(3, 5)
    head = torch.nn.Linear(5, 3)
    fit_linear(head, x, [x[:100] @ weight.T + 1, x[100:] @ weight.T + 1], penalty=1e-6)
    assert torch.allclose(head.weight, weight, atol=1e-3) and torch.allclose(head.bias, torch.ones(3), atol=1e-3)


def test_self_similarity_of_targets_is_centred(make):
    targets = make()._targets(torch.rand(8, 3, 32, 32))
    diagonal = targets.similarity.diagonal(dim1=1, dim2=2)
    assert torch.allclose(diagonal, torch.ones_like(diagonal), atol=1e-4) and abs(targets.similarity.mean()) < 0.3


def test_epsilon_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        AdversaryConfig(epsilon=(0, 1))
