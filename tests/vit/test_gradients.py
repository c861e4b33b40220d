import pytest
import torch
from support.feature_checks import EVERYTHING, FACETS, assert_same, images, relative_error
from torch import nn


@pytest.mark.parametrize("wanted", [{"keys": [-1]}, {"cls": True}, {"tokens": [-1]}, {"queries": [1], "values": [1]}])
def test_gradients_reach_the_images_and_nothing_else(tiny_backbone, wanted):
    backbone, batch = tiny_backbone(), images(2, 3, 48, 48).requires_grad_()
    found = backbone(batch, **wanted)
    loss = sum(t.square().sum() for facet in (*FACETS, "tokens") for t in getattr(found, facet).values())
    (loss if found.cls is None else loss + found.cls.square().sum()).backward()
    assert all(sample.abs().max() > 0 for sample in batch.grad)
    assert len(list(backbone.parameters())) > 10
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_the_shortcut_has_the_gradient_of_the_whole_block(tiny_backbone):
    backbone, batch = tiny_backbone(), images(1, 3, 48, 48).requires_grad_()
    gradients = []
    for wanted in ({"cls": True, "keys": [-1]}, {"cls": True, "keys": [-1], "tokens": [-1]}):
        found = backbone(batch, **wanted)
        gradients += torch.autograd.grad(found.cls.square().sum() + found.keys[2].square().sum(), batch)
    assert relative_error(*gradients) < 1e-5


def test_it_stays_in_eval_mode(tiny_backbone):
    backbone, batch = tiny_backbone(proj_drop_rate=0.5, pos_drop_rate=0.5), images(1, 3, 48, 48)
    before = backbone(batch, **EVERYTHING)
    nn.Sequential(backbone).train()
    assert backbone.train() is backbone
    assert not any(module.training for module in backbone.modules())
    assert_same(backbone(batch, **EVERYTHING), before, tolerance=1e-9)


def test_no_attention_matrix_is_stored_for_backward(tiny_backbone):
    """They are what makes large inputs run out of memory: T * T * heads numbers a layer."""
    backbone, batch = tiny_backbone(), images(1, 3, 112, 112).requires_grad_()
    attention = (1 + 14 * 14) ** 2 * 6

    def largest_saved():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            backbone(batch, cls=True, keys=[-1])
            backbone(batch, cls=True, tokens=[-1])
        return max(sizes)

    assert 0 < largest_saved() < attention
    for block in backbone.vit.blocks:
        block.attn.fused_attn = False
    assert largest_saved() >= attention  # so the check above would have seen one
