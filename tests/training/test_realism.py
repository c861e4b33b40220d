"""The discriminator beside the generator (`loss.realism`): its losses, who learns from them, and going on."""

import signal

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.training_setup import color_network, log_lines, read_config, write_run
from torch.nn import functional as F

from splice_ff import InputError
from splice_ff.training import realism as module
from splice_ff.training.trainer import Trainer


@pytest.fixture
def start(tmp_path, vit_state, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    network = color_network()
    monkeypatch.setattr(module, "load_teacher", lambda name: network)

    def make(*overrides, name="job"):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return Trainer(
            read_config(write_run(tmp_path / name, vit_state), "loss.terms.realism=0.5", *overrides), quiet=True
        )

    return make


def state(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_both_sides_minimize_the_hinge_losses(start):
    trainer = start()
    batch = next(trainer.data.batches(0))
    trainer.realism.discriminator.eval()  # no step of the power iteration between the two calls
    _, terms = trainer.losses(batch)
    images = torch.cat([batch.first, batch.second])
    cls = trainer.pair_losses.encode_images(images)[0].cls[:, -1]
    maps = trainer.pair_losses.network(images)  # an untrained generator copies: outputs are the photographs
    own = trainer.realism.discriminator(maps, cls)
    other = trainer.realism.discriminator(maps, cls.roll(len(batch.first), 0))
    assert terms["realism"].item() == pytest.approx(-0.5 * sum(x.mean() for x in other).item(), rel=1e-3, abs=1e-5)
    hinges = sum(F.relu(1 - x).mean() + F.relu(1 + y).mean() for x, y in zip(own, other, strict=True))
    assert trainer.realism.step().item() == pytest.approx(hinges.item(), rel=1e-3)


def test_each_learns_from_its_own_loss_only(start):
    trainer = start()
    _, terms = trainer.losses(next(trainer.data.batches(0)))
    terms["realism"].backward()
    discriminator = trainer.realism.discriminator
    assert all(p.grad is None for p in discriminator.parameters())
    assert any(p.grad is not None and p.grad.any() for p in trainer.generator.parameters())
    before, painted = state(discriminator), state(trainer.generator)
    trainer.generator.zero_grad()
    trainer.realism.step()
    assert not torch.equal(state(discriminator), before) and torch.equal(state(trainer.generator), painted)
    assert all(p.grad is None for p in trainer.generator.parameters())


def test_it_learns_to_tell_outputs_from_photographs(start):
    trainer = start("optimizer.steps=40", "loss.terms.realism=1e-6", "optimizer.learning_rate=1e-9")
    with torch.no_grad():
        trainer.generator.unet.to_rgb[-1].bias += 2  # far too bright
    trainer.run()
    lines = log_lines(trainer.config.output)
    assert lines[1]["discriminator"] > 3.5 and lines[40]["discriminator"] < 3


def test_a_generator_follows_its_discriminator(start):
    """Against a discriminator that likes bright images, outputs become brighter."""
    trainer = start("loss.structure=0", "loss.appearance=0", "loss.identity=0", "optimizer.learning_rate=0.003")
    trainer.realism.discriminator.forward = lambda maps, cls: [maps[0].mean((1, 2, 3))]
    trainer.realism.step = lambda: torch.zeros(())
    trainer.run()
    first, second = next(iter(trainer.data.validation()))
    assert trainer.paint(first, second).mean() > first.mean() + 0.02


def test_gradients_that_are_not_finite_leave_it_as_it_was(start):
    trainer = start()
    trainer.losses(next(trainer.data.batches(0)))
    count, maps, cls = trainer.realism._seen
    trainer.realism._seen = count, [scale * float("nan") for scale in maps], cls
    before = state(trainer.realism.discriminator)
    trainer.realism.step()
    assert torch.equal(state(trainer.realism.discriminator), before)
    trainer.losses(next(trainer.data.batches(0)))
    trainer.realism.step()
    assert state(trainer.realism.discriminator).isfinite().all()


def test_a_run_that_stopped_goes_on_as_if_it_had_not(start):
    whole = start("run.checkpoint_every=4", name="whole")
    whole.run()
    first = start("run.checkpoint_every=4", name="parts")
    step = first.step

    def step_and_stop(batches):
        losses = step(batches)
        if first.loop.step_count == 4:
            signal.raise_signal(signal.SIGTERM)
        return losses

    first.step = step_and_stop
    first.run()
    assert first.loop.step_count == 4
    second = start("run.checkpoint_every=4", name="parts")
    second.run()
    for a, b in ((whole.generator, second.generator), (whole.realism.discriminator, second.realism.discriminator)):
        torch.testing.assert_close(state(a), state(b), rtol=1e-5, atol=1e-6)


def test_a_run_without_one_does_not_go_on_with_one(start):
    start("loss.terms.realism=0", "optimizer.steps=2").run()
    with pytest.raises(InputError, match="choose another output"):
        start("optimizer.steps=4").run()
