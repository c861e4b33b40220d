"""A distillation that takes a fraction of a second a step."""

import pytest
import torch

from splice_ff.networks.teachers import Teacher
from splice_ff.pretraining.config import DistillationConfig
from splice_ff.pretraining.distillation import Distillation
from splice_ff.pretraining.student import Student


class Colors(torch.nn.Module):
    """A teacher with two maps: colors of places, coarse and coarser."""

    def forward(self, images):
        return [torch.nn.functional.avg_pool2d(images, s) for s in (8, 16)]


@pytest.fixture
def make(tiny_backbone):
    """Called with settings: a `Distillation` whose student learns colors, with an adversary and keys by default."""

    def distillation(**settings):
        torch.manual_seed(0)
        usual = {"adversary": {"epsilon": [4, 4]}, "keys": 1.0}
        config = DistillationConfig(teacher="colors", optimizer={"steps": 4}, **usual | settings)
        teacher = Teacher(Colors(), [3, 3], (0.5,) * 3, (0.5,) * 3)
        module = Distillation(Student(tiny_backbone(depth=3)), teacher, config)
        module.measure([torch.rand(8, 3, 32, 32)])
        return module

    return distillation
