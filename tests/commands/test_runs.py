"""How runs of many steps end in a command."""

import os
import signal
from pathlib import Path

import pytest
import torch
import typer

from splice_ff.commands._runs import end_run, resume, take_steps, write_best
from splice_ff.errors import DivergedError, InputError
from splice_ff.utils.steps import SteppedRun


class Run(SteppedRun[int]):
    """Ten steps, counted; one of them may fail, by an error or by what a function does."""

    def __init__(self, failure=None, at=None, sound=True, steps=10):
        self.steps, self.failure, self.at, self.sound = steps, failure, at, sound

    def step(self):
        if self.step_count == self.at:
            if not callable(self.failure):
                raise self.failure
            self.failure()
        self.step_count += 1
        return self.step_count

    def result(self):
        raise DivergedError("never finite")

    side = 500

    def is_sound(self):
        return self.sound

    def identity(self):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
]


def figures(step):
    return {"step": step}


def saved_step(state):
    run = Run()
    run.load(state)
    return run.step_count


def test_a_whole_run_keeps_its_state_and_is_followed_step_by_step(tmp_path):
    run, seen = Run(), []

    def after_step():
        seen.append(run.step_count)

    assert take_steps(run, figures, True, state=tmp_path / "run.pt", after_step=after_step) is None
    assert seen == list(range(1, 11)) and saved_step(tmp_path / "run.pt") == 10
    end_run(run, None, "nothing to say")


@pytest.mark.parametrize(
    ("failure", "step", "status"),
    [
        (KeyboardInterrupt(), 4, 130),
        (lambda: os.kill(os.getpid(), signal.SIGINT), 5, 130),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 5, 143),
    ],
    ids=["raised", "ctrl-C", "SIGTERM"],
)
def test_being_stopped_keeps_the_state(tmp_path, capsys, failure, step, status):
    run = Run(failure, at=4)
    ended_by = take_steps(run, figures, True, state=tmp_path / "run.pt")
    assert saved_step(tmp_path / "run.pt") == step
    with pytest.raises(typer.Exit) as ended:
        end_run(run, ended_by, "the image is in out.png")
    assert ended.value.exit_code == status
    assert capsys.readouterr().err == f"interrupted at step {step}; the image is in out.png\n"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_too_little_memory_keeps_the_state_and_is_one_line_with_the_way_out(tmp_path, error):
    run = Run(error, at=4)
    failure = take_steps(run, figures, True, state=tmp_path / "run.pt")
    assert saved_step(tmp_path / "run.pt") == 4
    with pytest.raises(InputError, match=r"^out of memory at 500 pixels; try --size 250.*; the image is in out\.png$"):
        end_run(run, failure, "the image is in out.png")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), OSError(5, "Input/output error"), RuntimeError("kernel")]
)
def test_any_other_error_keeps_the_state_and_passes(tmp_path, capsys, error):
    run = Run(error, at=4)
    failure = take_steps(run, figures, True, state=tmp_path / "run.pt")
    assert saved_step(tmp_path / "run.pt") == 4
    with pytest.raises(type(error)):
        end_run(run, failure, "the image is in out.png")
    assert "the image is in out.png" in capsys.readouterr().err


def test_a_state_that_cannot_be_written_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("splice_ff.commands._runs.SAVE_STATE_EVERY", 3)
    (tmp_path / "file").touch()
    run = Run()
    failure = take_steps(run, figures, True, state=tmp_path / "file" / "run.pt")
    assert run.step_count == 3
    with pytest.raises(InputError, match=r"run\.pt.*cannot be written.*; the image is in out\.png$"):
        end_run(run, failure, "the image is in out.png")


def test_divergence_is_an_error_and_its_state_is_not_kept(tmp_path):
    run = Run(DivergedError("not finite at step 5"), at=4)
    failure = take_steps(run, figures, True, state=tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()
    with pytest.raises(InputError, match=r"^not finite at step 5; the image is in out\.png$"):
        end_run(run, failure, "the image is in out.png")


def test_a_state_with_losses_that_are_not_finite_never_replaces_a_sound_one(tmp_path, monkeypatch):
    monkeypatch.setattr("splice_ff.commands._runs.SAVE_STATE_EVERY", 1)
    run = Run(lambda: setattr(run, "sound", False), at=4)
    take_steps(run, figures, True, state=tmp_path / "run.pt")
    assert saved_step(tmp_path / "run.pt") == 4
    again = Run()
    resume(again, tmp_path / "run.pt", True)
    assert take_steps(again, figures, True) is None and again.step_count == 10


@pytest.mark.parametrize("failure", [None, DivergedError("not finite"), *OUT_OF_MEMORY[:1]])
def test_a_run_without_an_image_says_why(failure):
    reason = {type(None): "never finite", DivergedError: "not finite", MemoryError: "out of memory"}[type(failure)]
    with pytest.raises(InputError, match=f"^{reason}.*; no image was made$"):
        write_best(Run(), failure, Path("out.png"), None, {})


def test_ctrl_c_before_any_image_is_still_130(capsys):
    with pytest.raises(typer.Exit) as ended:
        write_best(Run(), KeyboardInterrupt(), Path("out.png"), None, {})
    assert ended.value.exit_code == 130 and "no image was made" in capsys.readouterr().err
