"""The style loss (`loss.style`): its value, where its scale comes from, and a run with it."""

import datasets
import pytest
import torch
from support.training_setup import color_network, read_config, write_run

from splice_ff.training import realism
from splice_ff.training.style import style_loss
from splice_ff.training.trainer import Trainer
from splice_ff.utils.seeding import seeded_generator


def maps(count, *channels, seed=0):
    return [torch.randn(count, c, 6, 6, generator=seeded_generator(seed, c)) for c in channels]


def statistics(x):
    return torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], 1)


def test_it_is_the_distance_of_means_and_deviations_in_units_of_their_variance():
    ours, theirs = maps(4, 3, 5), maps(4, 3, 5, seed=1)
    expected = 0.0
    for a, b in zip(ours, theirs, strict=True):
        wanted = statistics(b)
        spread = sum(float(wanted[:, c].var()) for c in range(wanted.shape[1]))
        expected += float((statistics(a) - wanted).square().sum(1).mean()) / spread / 2
    assert style_loss(ours, theirs).item() == pytest.approx(expected, rel=1e-3)


def test_where_things_are_does_not_count():
    theirs = maps(4, 3, 5)
    places = torch.randperm(36, generator=seeded_generator(2))
    moved = [x.flatten(2)[..., places].view_as(x) for x in theirs]
    assert style_loss(moved, theirs).item() == pytest.approx(0, abs=1e-6)
    assert style_loss([x.flip(0) for x in theirs], theirs).item() > 1  # of which pair they are does


def test_unrelated_images_are_at_two_at_every_scale():
    for scale in (0.01, 100.0):
        ours, theirs = ([scale * x for x in maps(500, 7, seed=seed)] for seed in (3, 4))
        assert style_loss(ours, theirs).item() == pytest.approx(2, abs=0.2)


def test_half_precision_does_not_round_it():
    ours, theirs = maps(4, 3), maps(4, 3, seed=1)
    expected = style_loss(ours, theirs).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert style_loss(ours, theirs).item() == expected


def test_equal_maps_have_finite_gradients():
    flat = [torch.ones(2, 3, 4, 4, requires_grad=True)]
    style_loss(flat, [torch.ones(2, 3, 4, 4)]).backward()
    assert flat[0].grad.isfinite().all()


def test_a_run_takes_it_with_its_weight(tmp_path, vit_state, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    network = color_network()
    monkeypatch.setattr(realism, "load_teacher", lambda name: network)
    trainer = Trainer(read_config(write_run(tmp_path, vit_state), "loss.style=0.5"), quiet=True)
    assert trainer.realism is None and trainer.kernel is None
    batch = next(trainer.data.batches(0))
    _, others = trainer.losses(batch)
    photographs = network(torch.cat([batch.first, batch.second]))  # an untrained generator copies
    expected = 0.5 * style_loss(photographs, [x.roll(len(batch.first), 0) for x in photographs])
    assert others.item() == pytest.approx(expected.item(), rel=1e-3) and others.item() > 0
    trainer.step(trainer.data.batches(0))
