"""The training loop: what it minimizes, writes, survives."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from support.training_setup import log_lines, read_config, write_run

from splice_ff import InputError
from splice_ff.errors import DivergedError
from splice_ff.losses import SpliceLoss
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.training.checkpoints import checkpoint_steps
from splice_ff.training.trainer import Trainer
from splice_ff.utils.schedules import warmed_up
from splice_ff.vit.inputs import ViTInput

CURVES = ("total", "structure", "appearance", "identity", "gradient_norm", "learning_rate")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # of processes that are started


@pytest.fixture
def start(tmp_path, vit_state):
    def make(*overrides, name="job", **changes):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return Trainer(read_config(write_run(tmp_path / name, vit_state, **changes), *overrides), quiet=True)

    return make


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.generator.parameters()])


def test_a_run_lowers_the_losses_and_leaves_everything(start):
    trainer = start(
        "optimizer.steps=40", "run.validate_every=20", "run.sample_every=40",
        data__pairs={"across": 1.0, "within": 0.0, "identity": 0.0},
    )  # fmt: skip
    trainer.run()
    output = trainer.config.output
    validation = log_lines(output, "validation")
    assert list(validation) == [20, 40]
    assert validation[40]["gap_left"] < 0.3
    assert validation[40]["copy"] == validation[20]["copy"]
    line = log_lines(output)[40]
    assert {*CURVES, "pairs_per_second", "share_waiting_for_data", "memory_gib", "skipped_images"} <= {*line}
    with Image.open(output / "samples" / "step-00000040.png") as image:
        assert image.size == (3 * 34 + 2, 2 * 34 + 2)  # structure, appearance, output of two pairs
    *older, last, newest = checkpoint_steps(output)
    assert (last, newest) == (38, 40) and len(older) <= 2 and older[0] <= 30  # from before a possible divergence
    made = [SpliceFF.from_pretrained(output / name, backbone=trainer.original_backbone) for name in ("best", "model")]
    image = torch.rand(1, 3, 32, 32)
    first, second = next(trainer.data.validation())
    for model in made:
        assert model(image, image, output_type="pt").shape == image.shape
    torch.testing.assert_close(
        made[1](first, second, output_type="pt"), trainer.paint(first, second), atol=2e-2, rtol=0
    )  # fp16 on disk


def test_the_best_is_chosen_anew_when_what_it_is_chosen_by_has_changed(start):
    def run(*changes):
        trainer = start("run.validate_every=1", *changes)
        trainer.loop.say = said.append
        trainer.run()
        best = SpliceFF.from_pretrained(trainer.config.output / "best", backbone=trainer.original_backbone)
        return trainer.loop.progress.results, best.config.training["steps"]

    said = []
    first, _ = run("optimizer.steps=2")
    dearer, step = run("optimizer.steps=3", "loss.structure=50", "loss.appearance=500")
    assert len(first) == len(dearer) == 1 and step == 3 and sum("chosen anew" in line for line in said) == 1
    assert next(iter(dearer.values())) > next(iter(first.values()))
    run("optimizer.steps=4", "loss.structure=50", "loss.appearance=500")
    assert sum("chosen anew" in line for line in said) == 1


def test_the_losses_are_splices_in_both_directions(start):
    trainer = start("loss.crop=1.0", "loss.identity_every=1")
    batch = next(trainer.data.batches(0))
    found, _ = trainer.losses(batch)
    loss = SpliceLoss(trainer.backbone, vit_input=ViTInput(32))
    first, second = loss.targets(batch.first, batch.second)
    with torch.no_grad():  # an untrained generator copies
        both = [loss(batch.first, first, second), loss(batch.second, second, first)]
    assert found.appearance.item() == pytest.approx(sum(x.appearance.item() for x in both) / 2, rel=1e-3)
    assert found.structure.item() == pytest.approx(0, abs=1e-6) and found.identity.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("views", ["loss.crop=0.5", "loss.views=similarity", "loss.views=independent-similarities"])
def test_the_same_view_of_output_and_structure_is_compared(start, views):
    trainer = start(views)
    losses, _ = trainer.losses(next(trainer.data.batches(0)))
    assert losses.structure.item() == pytest.approx(0, abs=1e-6)  # a copy; another view would not match
    assert losses.appearance > 0


def test_crops_are_of_all_sizes_and_places(start):
    trainer = start("loss.crop=0.5")
    places = torch.arange(32.0 * 32).view(1, 1, 32, 32)
    seen = [trainer.pair_losses.views(step, places)[1][0][0, 0] for step in range(8)]
    assert len({view[0, 0].item() for view in seen}) > 4
    assert all(16 <= len(view) <= 32 and view.shape == (len(view), len(view)) for view in seen)
    assert all((view.diff(dim=1) == 1).all() and (view.diff(dim=0) == 32).all() for view in seen)


def test_similarities_are_seen_at_random_resolution(start):
    trainer = start("loss.views=similarity", "loss.vit_size=64")
    images = torch.rand(2, 3, 32, 32)
    found = [trainer.pair_losses.views(step, images, images + 1) for step in range(8)]
    sizes = [vit_input.size for vit_input, _ in found]
    assert len(set(sizes)) > 4 and round(0.6 * 64) <= min(sizes) and max(sizes) <= 64
    for _, (first, second) in found:
        assert first.shape == images.shape and torch.allclose(first + 1, second, atol=1e-5), "the same for all"
        assert not torch.equal(first, images)
    again = trainer.pair_losses.views(3, images)
    assert again[0].size == sizes[3] and torch.equal(again[1][0], found[3][1][0]), "a resumed run sees the same"


@pytest.mark.parametrize(("views", "is_wanted"), [("similarity", True), ("independent-similarities", False)])
def test_a_look_is_wanted_where_it_stands_or_anywhere(start, views, is_wanted):
    """A copy of an image has its [CLS], unless that is taken of a view of its own."""
    trainer = start(f"loss.views={views}")
    batch = next(trainer.data.batches(0))
    batch = replace(batch, second=batch.first)
    losses, _ = trainer.losses(batch)
    assert (losses.appearance.item() == pytest.approx(0, abs=1e-6)) == is_wanted
    assert losses.structure.item() == pytest.approx(0, abs=1e-6)


def test_views_of_looks_are_a_steps_own(start):
    losses = start("loss.views=independent-similarities").pair_losses
    places = torch.arange(32.0 * 32).view(1, 1, 32, 32).expand(2, 3, -1, -1)
    seen = [losses.appearance_view(step, places) for step in range(8)]
    assert torch.equal(seen[3], losses.appearance_view(3, places)), "a resumed run sees the same"
    assert len({view.mean().item() for view in seen}) == 8
    assert all(not torch.allclose(losses.views(step, places)[1][0], view) for step, view in enumerate(seen))


def test_large_changes_of_pixels_have_a_price(start):
    trainer = start("loss.terms.pixels=2")
    batch = next(trainer.data.batches(0))
    assert trainer.losses(batch)[1]["pixels"] == 0, "an untrained generator copies"
    with torch.no_grad():
        trainer.generator.unet.to_rgb[-1].bias += 0.5
    assert trainer.losses(batch)[1]["pixels"].item() == pytest.approx(2 * 0.5**4)
    seen = trainer.step(iter([batch]))
    assert seen["pixels"] == pytest.approx(2 * 0.5**4)
    assert "pixels" not in start().step(iter([batch]))


def test_only_the_generator_learns(start):
    trainer = start()
    fingerprint, before = trainer.original_backbone.fingerprint, weights(trainer)
    trainer.step(trainer.data.batches(0))
    del trainer.original_backbone.fingerprint
    assert trainer.original_backbone.fingerprint == fingerprint and not trainer.backbone.vit.training
    assert not torch.equal(weights(trainer), before)


def test_steps_inside_a_callers_autocast_are_the_same(start):
    def losses_of_three_steps():
        trainer = start("run.precision=bf16")
        batches = trainer.data.batches(0)
        return [trainer.step(batches)["total"] for _ in range(3)]

    plain = losses_of_three_steps()
    with torch.autocast("cpu", enabled=False):  # an outer context keeps the cache of cast weights
        assert losses_of_three_steps() == plain


def test_accumulation_equals_a_larger_batch(start):
    gradients = []
    for name, overrides in (
        ("whole", ["optimizer.batch_size=4"]),
        ("parts", ["optimizer.gradient_accumulation_steps=2"]),
    ):
        trainer = start("optimizer.max_grad_norm=1e9", *overrides, name=name)
        losses = trainer.step(trainer.data.batches(0))
        gradients.append((losses["total"], trainer.loop.gradient_norm))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_resumed_curve_is_the_unbroken_ones(start):
    unbroken = start(name="unbroken")
    unbroken.run()
    broken = start(name="broken")
    step = broken.step

    def die(batches):
        if broken.loop.step_count == 5:
            raise RuntimeError("power cut")
        return step(batches)

    broken.step = die
    with pytest.raises(RuntimeError, match="power cut"):
        broken.run()
    resumed = start(name="broken")
    resumed.run()
    expected, found = (log_lines(t.config.output) for t in (unbroken, resumed))
    assert list(found) == list(range(1, 9))
    for step_count, key in itertools.product(found, CURVES):
        assert found[step_count][key] == expected[step_count][key]
    assert torch.equal(weights(resumed), weights(unbroken))
    a, b = (log_lines(t.config.output, "validation")[8]["total"] for t in (unbroken, resumed))
    assert a == b


def test_kill_9_leaves_whole_checkpoints_and_the_run_goes_on(start, tmp_path):
    trainer = start("optimizer.steps=100000", "run.checkpoints_total_limit=3")
    config = tmp_path / "job" / "config.yaml"
    program = [sys.executable, "-m", "splice_ff", "train", str(config), "optimizer.steps=100000", "--quiet"]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoints = trainer.config.output / "checkpoints"
    while not list(checkpoints.glob("step-*6")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.2)
    process.kill()
    process.wait()
    trainer.loop.resume()
    taken = trainer.loop.step_count
    assert taken >= 6 and taken % 2 == 0
    assert trainer.step(trainer.data.batches(taken))["total"] > 0


def test_sigterm_saves_and_ends_cleanly(start):
    trainer = start()
    step = trainer.step

    def signalled(batches):
        if trainer.loop.step_count == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batches)

    before = signal.getsignal(signal.SIGTERM)
    trainer.step = signalled
    trainer.run()
    assert trainer.loop.step_count == 3 and not trainer.was_interrupted
    assert (trainer.config.output / "checkpoints" / "step-00000003").is_dir()
    assert signal.getsignal(signal.SIGTERM) == before
    again = start()
    again.loop.resume()
    assert again.loop.step_count == 3


def poison(trainer, steps):
    losses = trainer.losses

    def poisoned(batch):
        found, terms = losses(batch)
        return found, terms | {"poison": (float("nan") if trainer.loop.step_count in steps else 0) * found.total}

    trainer.losses = poisoned


def test_a_nan_step_is_skipped_and_counted(start):
    trainer = start("optimizer.steps=3")
    poison(trainer, {1})
    seen = []
    step = trainer.step
    trainer.step = lambda batches: (step(batches), seen.append(weights(trainer)))[0]
    trainer.run()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert trainer.loop.progress.skipped_steps == 1 and torch.isfinite(weights(trainer)).all()
    assert log_lines(trainer.config.output)[3]["skipped_steps"] == 1


def test_many_bad_steps_in_a_row_end_the_run_with_good_weights(start):
    trainer = start("optimizer.max_skipped_steps=3")
    poison(trainer, range(5, 100))
    with pytest.raises(DivergedError, match=r"3 steps in a row.*goes on from step 2"):
        trainer.run()
    assert trainer.loop.step_count == 8
    again = start("optimizer.max_skipped_steps=3")
    again.loop.resume()
    assert again.loop.step_count == 2 and torch.isfinite(weights(again)).all()


def test_another_generator_cannot_go_on_from_a_run(start):
    start("optimizer.steps=2").run()
    with pytest.raises(InputError, match=r"other settings .generator"):
        start("generator.context=cls+patches").run()


@pytest.mark.parametrize("damage", ["missing", "text", "yaml", "bytes"])
def test_checkpoints_without_their_settings_are_refused(start, damage):
    first = start("optimizer.steps=2")
    first.run()
    file = first.config.output / "config.yaml"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"text": b"words", "yaml": b"a: [", "bytes": b"\xff"}[damage])
    with pytest.raises(InputError, match=r"config\.yaml: (missing|damaged).*choose another (output|folder)"):
        start("optimizer.steps=4").run()


def test_one_process_trains_in_one_precision(start, tmp_path, vit_state):
    start("run.precision=fp32")
    with pytest.raises(InputError, match=r"run\.precision=bf16"):
        Trainer(read_config(write_run(tmp_path / "job", vit_state), "run.precision=bf16"), quiet=True)


def test_trackers_that_cannot_be_had_are_named(start, monkeypatch):
    with pytest.raises(InputError, match=r"run\.trackers=\['abacus'\]"):
        start("run.trackers=[abacus]")
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb"])
    with pytest.raises(InputError, match=r"run\.trackers: install tensorboard"):
        start("run.trackers=[tensorboard, wandb]")


def test_what_cannot_run_leaves_no_output(start, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        start(f"data.source={tmp_path / 'nowhere'}")
    assert not (tmp_path / "job" / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        start(f"output={tmp_path / 'file' / 'run'}")


def test_a_run_can_start_from_a_trained_generator(start):
    first = start("optimizer.steps=2")
    first.run()
    second = start(f"generator.start_from={first.config.output / 'model'}", name="second")
    torch.testing.assert_close(
        weights(second), torch.cat([p.flatten() for p in first.average.parameters()]), atol=1e-3, rtol=1e-2
    )
    with pytest.raises(InputError, match="another kind"):
        start(f"generator.start_from={first.config.output / 'model'}", "generator.size=small", name="third")


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [warmed_up(1.0, step, 10, 100) for step in range(101)]
    assert rates[0] < rates[5] < rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert all(b <= a for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_and_checkpointing_train(start, precision):
    trainer = start(f"run.precision={precision}", "run.gradient_checkpointing=true")
    seen = trainer.step(trainer.data.batches(0))
    assert seen["total"] > 0 and trainer.loop.gradient_norm > 0 and trainer.loop.progress.skipped_steps == 0


def test_streams_train(start, tmp_path):
    trainer = start("data.streaming=true", "optimizer.steps=10", "optimizer.batch_size=4")
    trainer.run()  # more than an epoch
    assert log_lines(trainer.config.output)[10]["total"] > 0


def test_overfits_two_pairs(start):
    """A smaller version of the promise: 8 pairs under 25 % of copying's loss."""
    trainer = start(
        "data.held_out=train", "optimizer.steps=150", "loss.crop=1.0",
        "run.validate_every=150", "run.checkpoint_every=1000", "run.sample_every=1000", images=2,
        data__pairs={"across": 1.0, "within": 0.0, "identity": 0.0},
    )  # fmt: skip
    trainer.run()
    assert log_lines(trainer.config.output, "validation")[150]["gap_left"] < 0.25


def test_tensorboard_gets_curves_and_images(start):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = start("optimizer.steps=2", "run.trackers=[tensorboard]", "run.validate_every=2")
    trainer.run()
    (folder,) = {path.parent for path in (trainer.config.output / "log").rglob("events*")}
    events = EventAccumulator(str(folder)).Reload()
    assert {f"train/{name}" for name in CURVES} | {"validation/gap_left"} <= {*events.Tags()["scalars"]}
    assert [event.step for event in events.Scalars("train/total")] == [1, 2]
    assert events.Tags()["images"] == ["samples"]
