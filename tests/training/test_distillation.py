"""The trainer's terms towards a teacher's images."""

from dataclasses import replace

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.training_setup import log_lines, read_config, write_run
from torch.nn import functional as F

from splice_ff.images import save_image
from splice_ff.per_pair.recipes import make_recipe
from splice_ff.training.teacher import teach
from splice_ff.training.trainer import Trainer

RECIPE = replace(make_recipe("fast", steps=1, size=64, precision="fp32"), copy_steps=1, views=1)


@pytest.fixture
def teacher_folder(tmp_path, tiny_backbone):
    """A teacher's folder of two pairs."""
    random = torch.Generator().manual_seed(0)
    for name in "ab":
        (tmp_path / "pairs" / name).mkdir(parents=True)
        for kind in ("structure", "appearance"):
            image = F.interpolate(torch.rand(1, 3, 4, 4, generator=random), (64, 70), mode="bicubic").clamp(0, 1)
            save_image(tmp_path / "pairs" / name / f"{kind}.png", image)
    folder, backbone = tmp_path / "teacher", tiny_backbone(depth=2, patch_size=24)
    assert teach(tmp_path / "pairs", folder, backbone, RECIPE, device="cpu", quiet=True).painted == 2
    return folder


@pytest.fixture
def start(tmp_path, vit_state, teacher_folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(*overrides):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        config = write_run(tmp_path / "job", vit_state, distill={"source": str(teacher_folder), "share": 0.5})
        return Trainer(read_config(config, *overrides), quiet=True)

    return make


def test_the_image_term_is_the_distance_to_the_teachers_image(start):
    trainer = start("distill.image=2.0")
    batch = next(trainer.data.batches(0))
    assert len(batch.teacher.structure) == 1  # half of a batch of two
    losses, terms = trainer.losses(batch)
    distilled = terms["teacher"]
    copied = F.l1_loss(batch.teacher.structure, batch.teacher.output)  # an untrained generator copies
    assert copied > 0.01 and distilled.item() == pytest.approx(2 * copied.item(), rel=1e-3)
    seen = trainer.step(iter([batch]))
    assert seen["teacher"] == pytest.approx(distilled.item(), rel=1e-4)
    assert seen["total"] == pytest.approx(losses.total.item() + distilled.item(), rel=1e-4)


def test_the_feature_term_is_the_distance_of_keys(start):
    trainer = start("distill.image=0", "distill.features=3.0")
    batch = next(trainer.data.batches(0))
    keys = [trainer.backbone(x, keys=[-1]).keys[1] for x in (batch.teacher.structure, batch.teacher.output)]
    assert trainer.losses(batch)[1]["teacher"].item() == pytest.approx(3 * F.mse_loss(*keys).item(), rel=1e-2)


def test_training_comes_nearer_to_the_teacher(start):
    trainer = start("optimizer.steps=30", "optimizer.learning_rate=0.002", "distill.image=20", "loss.appearance=0.01")
    trainer.run()
    lines = log_lines(trainer.config.output)
    first, last = (sum(lines[step]["teacher"] for step in steps) for steps in (range(1, 6), range(26, 31)))
    assert last < 0.8 * first
