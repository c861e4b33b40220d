"""The kernel distance to photographs (`loss.kernel`): its value and gradient, what it remembers, and a run with it."""

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.training_setup import color_network, log_lines, read_config, write_run

from splice_ff.evaluation.judges import kernel_distance
from splice_ff.training import kernel as module
from splice_ff.training import realism
from splice_ff.training.kernel import KernelDistance
from splice_ff.training.trainer import Trainer


def maps(count, channels, seed, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    return [shift + torch.randn(count, c, 3, 3, generator=random) for c in channels]


def test_it_is_the_witness_function_of_what_it_remembers():
    loss = KernelDistance([4])
    assert loss(maps(100, [4], 0), maps(100, [4], 1)).item() == 0  # too few are known
    assert loss(maps(100, [4], 2), maps(100, [4], 3)).item() == 0
    now = maps(5, [4], 4)
    found = loss(maps(5, [4], 5), now).item()

    photographs, outputs = (
        torch.cat([maps(100, [4], seed)[0].mean((2, 3)) for seed in seeds]) for seeds in ((0, 2), (1, 3))
    )
    mean, deviation = photographs.mean(0), photographs.std(0)
    expected = 0.0
    for features in now[0].mean((2, 3)):
        for sign, others in ((1, outputs), (-1, photographs)):
            products = ((features - mean) / deviation * (others - mean) / deviation).sum(1)
            expected += sign * ((products / 4 + 1) ** 3).mean().item() / 5
    assert found == pytest.approx(expected, rel=1e-4)


def test_following_it_brings_outputs_nearer_to_photographs():
    """Points that start elsewhere descend it: the kernel distance that evaluation takes falls to a tenth."""
    loss = KernelDistance([3])
    outputs = torch.nn.Parameter(torch.cat(maps(64, [3], 0, shift=1.0)))
    adam = torch.optim.Adam([outputs], 0.02)
    reals = torch.cat(maps(64, [3], 999)).mean((2, 3))
    before = kernel_distance(outputs.detach().mean((2, 3)), reals)
    for step in range(300):
        loss(maps(64, [3], step + 1), [outputs]).backward()
        adam.step()
        adam.zero_grad()
    assert before > 0.5 and kernel_distance(outputs.detach().mean((2, 3)), reals) < 0.1 * before


def test_the_oldest_are_forgotten_and_nothing_keeps_a_graph():
    loss = KernelDistance([2, 3])
    for step in range(9):
        loss(maps(200, [2, 3], step), [m.requires_grad_() for m in maps(200, [2, 3], 50 + step)])
    assert loss.photographs.shape == (module.MEMORY, 5) and int(loss.seen) == 1800
    assert not loss.outputs.requires_grad
    newest = torch.cat([m.mean((2, 3)) for m in maps(200, [2, 3], 8)], 1)
    places = torch.arange(1600, 1800) % module.MEMORY
    torch.testing.assert_close(loss.photographs[places], newest)


def test_what_is_not_finite_is_not_remembered():
    broken, whole = KernelDistance([4]), KernelDistance([4])
    for step in range(2):
        for loss in (broken, whole):
            loss(maps(100, [4], step), maps(100, [4], 10 + step))
    bad = maps(3, [4], 20)
    bad[0][1, 2] = float("nan")
    assert broken(maps(3, [4], 21), bad).isnan()
    whole([m[[0, 2]] for m in maps(3, [4], 21)], [m[[0, 2]] for m in bad])
    now = maps(5, [4], 30), maps(5, [4], 31)
    assert int(broken.seen) == 202 and broken(*now).item() == whole(*now).item() != 0


@pytest.fixture
def start(tmp_path, vit_state, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "FEWEST", 4)
    network = color_network()
    monkeypatch.setattr(realism, "load_teacher", lambda name: network)

    def make(*overrides):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return Trainer(read_config(write_run(tmp_path, vit_state), "loss.terms.kernel=0.5", *overrides), quiet=True)

    return make


def test_a_run_takes_it_without_a_discriminator(start):
    trainer = start()
    assert trainer.realism is None
    trainer.step(trainer.data.batches(0))
    _, terms = trainer.losses(next(trainer.data.batches(0)))
    assert terms["kernel"].requires_grad and terms["kernel"].item() != 0
    terms["kernel"].backward()
    assert any(p.grad is not None and p.grad.any() for p in trainer.generator.parameters())


def test_what_it_remembers_is_kept_with_the_run(start):
    start("optimizer.steps=2").run()
    trainer = start("optimizer.steps=3")
    trainer.run()
    count = 2 * trainer.config.optimizer.batch_size
    assert int(trainer.kernel.seen) == 3 * count and trainer.kernel.photographs[: 3 * count].any(1).all()
    assert log_lines(trainer.config.output)[3]["kernel"] != 0
