"""What the losses of colors and of local contrasts share: half precision, and a run that takes them."""

import pytest
import torch
from support.training_setup import read_config, write_run

from splice_ff.losses.color import color_loss
from splice_ff.losses.texture import texture_loss
from splice_ff.training.trainer import Trainer
from splice_ff.utils.seeding import seeded_generator

pytestmark = pytest.mark.parametrize(("name", "loss"), [("color", color_loss), ("texture", texture_loss)])


def test_half_precision_does_not_round_it(name, loss):
    images = torch.rand(2, 3, 64, 64, generator=seeded_generator(0))
    expected = loss(images, images**2)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(images, images**2).item() == expected.item() > 0


def test_a_run_takes_it_with_its_weight(name, loss, tmp_path, vit_state):
    trainer = Trainer(read_config(write_run(tmp_path, vit_state), f"loss.{name}=0.5"), quiet=True)
    batch = next(trainer.data.batches(0))
    _, others = trainer.losses(batch)
    images = torch.cat([batch.first, batch.second])  # an untrained generator copies
    expected = 0.5 * loss(images, images.roll(len(batch.first), 0))
    assert others.item() == pytest.approx(expected.item(), rel=1e-3) and others.item() > 0
    assert "others" in trainer.step(trainer.data.batches(0))
