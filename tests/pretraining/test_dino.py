"""DINO's loss, head, center, moving average and schedules, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from splice_ff.pretraining.config import DinoConfig
from splice_ff.pretraining.dino import Dino, DinoHead, dino_loss
from splice_ff.pretraining.student import Student
from splice_ff.utils.averaging import move_average
from splice_ff.utils.schedules import cosine, linear, warmed_up
from splice_ff.vit.features import ViTFeatures


def scores(*values):
    return torch.tensor([values])


def test_the_loss_is_the_cross_entropy_of_different_views():
    # Softmax of (ln 3, 0) is (3/4, 1/4); of (0, 0) it is (1/2, 1/2).
    teacher = [scores(math.log(3), 0.0), scores(0.0, 0.0)]
    student = [scores(0.0, 0.0), scores(math.log(3), 0.0), scores(0.0, math.log(3))]
    ln = math.log
    pairs = [
        -(3 / 4 * ln(3 / 4) + 1 / 4 * ln(1 / 4)),  # first view taught, second told
        -(3 / 4 * ln(1 / 4) + 1 / 4 * ln(3 / 4)),  # the small view told it the wrong way round
        ln(2),
        -(ln(1 / 4) + ln(3 / 4)) / 2,
    ]
    found = dino_loss(student, teacher, torch.zeros(2), 1.0, 1.0)
    assert found.item() == pytest.approx(sum(pairs) / 4)


def test_temperatures_sharpen_and_the_center_is_taken_away():
    # (1, 0) / 0.5 - the teacher's - has odds of e^2, less a center of (0.5, 0) e^1; the student's at 2 has e^0.5.
    p, q = (math.e / (1 + math.e), math.exp(0.5) / (1 + math.exp(0.5)))
    found = dino_loss([scores(9.0, 0.0), scores(1.0, 0.0)], [scores(1.0, 0.0)], torch.tensor([0.5, 0.0]), 2.0, 0.5)
    assert found.item() == pytest.approx(-(p * math.log(q) + (1 - p) * math.log(1 - q)))


def test_the_head_gives_cosines():
    torch.manual_seed(0)
    head = DinoHead(8, 16, 4, 10)
    found = head(torch.randn(5, 8))
    features, prototypes = (nn.functional.normalize(x, dim=-1) for x in (head.mlp(torch.randn(1, 8)), head.prototypes))
    assert found.shape == (5, 10) and found.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.prototypes.mul_(7)  # only directions count
        assert torch.allclose(
            head(torch.ones(1, 8)), nn.functional.normalize(head.mlp(torch.ones(1, 8))) @ prototypes.T
        )
    assert features.shape == (1, 4)


def test_the_moving_average():
    average, current = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((average, 1.0), (current, 3.0)):
        nn.init.constant_(module.weight, value)
        nn.init.constant_(module.bias, 10 * value)
    move_average(average, current, 0.75)
    assert (average.weight.item(), average.bias.item()) == (1.5, 15.0)
    assert (current.weight.item(), current.bias.item()) == (3.0, 30.0)


@pytest.fixture
def dino(tiny_vit):
    settings = DinoConfig(prototypes=6, hidden=8, bottleneck=4, local_views=1, local_size=16, optimizer={"steps": 2})
    return Dino(Student(ViTFeatures(tiny_vit(depth=2))), settings)


def test_the_center_and_the_teacher_follow(dino):
    with torch.no_grad():
        dino.head.prototypes.add_(1.0)
    before = dino.teacher_head.prototypes.clone()
    dino.after_step(torch.arange(6.0), momentum=0.5)
    dino.after_step(torch.arange(6.0), momentum=1.0)
    assert torch.allclose(dino.center, torch.arange(6.0) * (1 - 0.9**2))
    assert torch.allclose(dino.teacher_head.prototypes, before + 0.5)


def test_only_the_student_learns(dino):
    dino.train()
    random = torch.Generator().manual_seed(0)
    views = [torch.rand(2, 3, side, side, generator=random) for side in (48, 48, 16)]
    losses = dino(views, 0.04)
    losses["total"].backward()
    assert all(p.grad is None for part in (dino.teacher, dino.teacher_head) for p in part.parameters())
    trained = dict(dino.student.vit.named_parameters())
    assert all(
        trained[name].grad.abs().sum() > 0
        for name in ("cls_token", "pos_embed", "norm.weight", "patch_embed.proj.weight")
    )
    assert not dino.teacher.vit.training and dino.student.vit.training
    assert 0 < losses["entropy"] <= math.log(6) + 1e-5 and losses["batch_center"].shape == (6,)


def test_a_student_that_was_an_average_learns_too(make):
    product = make(ema_decay=0.9).product
    assert not any(p.requires_grad for p in product.parameters())
    dino = Dino(product, DinoConfig(prototypes=6, hidden=8, bottleneck=4, optimizer={"steps": 2}))
    learns = {name for name, p in dino.student.vit.named_parameters() if p.requires_grad}
    assert {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= learns
    assert not any(p.requires_grad for p in dino.teacher.parameters())


def test_schedules():
    assert [cosine(1.0, 0.0, step, 4) for step in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])
    assert cosine(0.996, 1.0, 25, 100) == pytest.approx(1 - 0.004 * (1 + math.cos(math.pi / 4)) / 2)
    assert [linear(0.04, 0.07, step, 30) for step in (0, 10, 30, 99)] == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert linear(0.04, 0.07, 0, 0) == 0.07
    rates = [warmed_up(1.0, step, 4, 12) for step in range(12)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[8] == pytest.approx(0.5) and rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
