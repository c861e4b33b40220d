"""What people run into while training: strangers' files, divergence, another layout of processes, threads, noise."""

import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.training_setup import log_lines, read_config, write_run

from splice_ff import InputError
from splice_ff.errors import DivergedError
from splice_ff.training.batches import TrainingData
from splice_ff.training.checkpoints import checkpoint_steps
from splice_ff.training.trainer import Trainer

PICKLES = ("custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "optimizer.bin", "random_states_0.pkl",
           "scheduler.bin", "scaler.pt")  # fmt: skip
SHIPPED = sorted(Path("train/configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def start(tmp_path, vit_state):
    def make(*overrides, quiet=True):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return Trainer(read_config(write_run(tmp_path / "job", vit_state), *overrides), quiet=quiet)

    return make


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_pickles_beside_a_checkpoint_never_run(start, tmp_path):
    first = start("optimizer.steps=2")
    first.run()
    for name in PICKLES:
        file = first.config.output / "checkpoints" / "step-00000002" / name
        file.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    again = start("optimizer.steps=3")
    again.run()
    assert again.loop.resumed_at == 2 and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("rate", [1e9, 1e4, 10.0])
def test_a_restart_with_a_sane_rate_leaves_a_divergence(start, rate):
    start("optimizer.steps=4").run()  # begins well
    with pytest.raises(DivergedError, match=r"smaller optimizer\.learning_rate"):
        start("optimizer.steps=40", f"optimizer.learning_rate={rate}", "run.checkpoint_every=1").run()
    again = start("optimizer.steps=12")
    again.run()
    assert again.loop.resumed_at == 4 and again.loop.progress.skipped_steps == 0
    lines = log_lines(again.config.output)
    assert list(lines) == list(range(1, 13)) and all(line["total"] < 20 for line in lines.values())
    assert log_lines(again.config.output, "validation")[12]["gap_left"] < 1.5


@pytest.mark.parametrize("steps", [3, 40])
def test_a_run_that_diverges_at_once_starts_again(start, steps):
    with pytest.raises(DivergedError, match="goes on from its beginning"):
        start(f"optimizer.steps={steps}", "optimizer.learning_rate=1e9", "run.checkpoint_every=1").run()
    again = start("optimizer.steps=4")
    assert checkpoint_steps(again.config.output) == [] and not (again.config.output / "model").exists()
    again.run()
    assert again.loop.resumed_at == 0 and again.loop.progress.skipped_steps == 0


def test_a_second_run_in_the_folder_is_refused(start):
    first, refused = start("optimizer.steps=3"), []
    step = first.step

    def meanwhile(batches):
        try:
            Trainer(first.config, first.accelerator, quiet=True).run()
        except InputError as error:
            refused.append(str(error))
        return step(batches)

    first.step = meanwhile
    first.run()
    assert len(refused) == 3 and all("another run is writing there" in line for line in refused)


IDENTITY_EVERY = sorted(
    {1, 3} | {yaml.safe_load(p.read_text(encoding="utf-8")).get("loss", {}).get("identity_every", 4) for p in SHIPPED}
)


@pytest.mark.parametrize("every", IDENTITY_EVERY)
def test_processes_and_accumulation_take_the_same_step(start, every):
    trainer = start("optimizer.batch_size=8", f"loss.identity_every={every}")
    for parameter in trainer.generator.parameters():  # an untrained generator copies: nothing to learn from itself
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    gradients = {}
    for batch_size, world, accumulation in ((8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2)):
        config = trainer.config.model_copy(
            update={
                "optimizer": trainer.config.optimizer.model_copy(
                    update={"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
                )
            }
        )
        for rank in range(world):
            fake = SimpleNamespace(
                process_index=rank, num_processes=world, is_local_main_process=True, device=torch.device("cpu")
            )
            batches = TrainingData(config, fake, quiet=True).batches(0)
            for _ in range(accumulation):
                losses, _ = trainer.losses(next(batches))
                (losses.total / accumulation / world).backward()
        key = (batch_size, world, accumulation)
        gradients[key] = torch.cat([p.grad.flatten() for p in trainer.generator.parameters()])
        trainer.loop.adam.zero_grad()
    one = gradients.pop((8, 1, 1))
    for layout, gradient in gradients.items():
        assert (gradient - one).norm() < 1e-5 * one.norm(), layout


def test_a_run_in_a_thread(start):
    trainer = start("optimizer.steps=2")
    failures = []

    def run():
        try:
            trainer.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures and trainer.loop.step_count == 2 and (trainer.config.output / "model").is_dir()


def test_quiet_is_quiet(start, capfd):
    start("optimizer.steps=4", "run.validate_every=2").run()
    start("optimizer.steps=6", "run.precision=fp32", "optimizer.batch_size=3").run()  # goes on, with changes
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_changes_between_runs_are_said(start, capfd, tmp_path):
    start("optimizer.steps=2").run()
    (tmp_path / "job" / "photos" / "a" / "00.png").unlink()
    start("optimizer.steps=3", "optimizer.batch_size=3", "loss.structure=2", quiet=False).run()
    said = capfd.readouterr().out
    for note in (
        "note: optimizer.batch_size: 2 before, 3 now",
        "note: loss.structure: 1.0 before, 2.0 now",
        "note: images: 12 before, 11 now",
    ):
        assert note in said


def test_a_ratio_that_means_nothing_is_neither_printed_nor_kept(start, capfd, monkeypatch):
    trainer = start("optimizer.steps=2", "run.validate_every=2", quiet=False)
    validation = trainer.data.validation
    monkeypatch.setattr(
        trainer.data, "validation", lambda: ((first, (first + 1e-4).clamp(0, 1)) for first, _ in validation())
    )
    trainer.run()
    assert "gap_left" not in log_lines(trainer.config.output, "validation")[2]
    assert "copying" not in capfd.readouterr().out
    assert "gap_left" not in (trainer.config.output / "best" / "README.md").read_text(encoding="utf-8")


def test_without_valid_held_out_pairs_no_model_is_called_best(start, capfd, monkeypatch):
    trainer = start("optimizer.steps=2", "run.validate_every=2", quiet=False)
    monkeypatch.setattr(trainer.data, "validation", lambda: iter(()))
    trainer.run()
    assert not (trainer.config.output / "best").exists() and (trainer.config.output / "model").is_dir()
    assert "no held-out pair is of two different images" in capfd.readouterr().out
