"""`python -m eval.devices`: the CPU beside a device."""

import torch

from eval.devices import loss_and_gradient

CPU = torch.device("cpu")


def test_precisions_are_told_apart_and_the_same_one_is_not(tiny_backbone):
    vit = tiny_backbone()
    loss, gradient = loss_and_gradient(vit, CPU, torch.float32)
    again, gradient_again = loss_and_gradient(vit, CPU, torch.float32)
    assert loss == again and torch.equal(gradient, gradient_again) and gradient.norm() > 0
    coarse, gradient_coarse = loss_and_gradient(vit, CPU, torch.bfloat16)
    assert 0 < abs(coarse / loss - 1) < 0.05
    assert 0 < (gradient_coarse - gradient).norm() / gradient.norm() < 0.2
