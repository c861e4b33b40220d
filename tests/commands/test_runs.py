"""How runs of many steps end in a command."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from splice_ff.commands._runs import end_run, take_steps, write_best
from splice_ff.errors import DivergedError, InputError


class Run:
    """Ten steps, counted; one of them may raise."""

    recipe = SimpleNamespace(steps=10)

    def __init__(self, failure=None, at=None):
        self.step_count, self.failure, self.at = 0, failure, at

    @property
    def done(self):
        return self.step_count >= 10

    def step(self):
        if self.step_count == self.at:
            raise self.failure
        self.step_count += 1
        return self.step_count

    def result(self):
        raise DivergedError("never finite")

    def state_dict(self):
        return {"step_count": self.step_count}


def figures(step):
    return {"step": step}


def test_a_whole_run_keeps_its_state_and_is_followed_step_by_step(tmp_path):
    run, seen = Run(), []

    def after_step():
        seen.append(run.step_count)

    assert take_steps(run, figures, True, state=tmp_path / "run.pt", after_step=after_step) is None
    assert seen == list(range(1, 11)) and (tmp_path / "run.pt").exists()
    end_run(run, None, "nothing to say")


def test_ctrl_c_is_130_and_keeps_the_state(tmp_path, capsys):
    run = Run(KeyboardInterrupt(), at=4)
    failure = take_steps(run, figures, True, state=tmp_path / "run.pt")
    assert (tmp_path / "run.pt").exists()
    with pytest.raises(typer.Exit) as ended:
        end_run(run, failure, "the image is in out.png")
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted at step 4; the image is in out.png\n"


def test_divergence_is_an_error_and_its_state_is_not_kept(tmp_path):
    run = Run(DivergedError("not finite at step 5"), at=4)
    failure = take_steps(run, figures, True, state=tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()
    with pytest.raises(InputError, match=r"^not finite at step 5; the image is in out\.png$"):
        end_run(run, failure, "the image is in out.png")


@pytest.mark.parametrize(
    ("failure", "reason"), [(KeyboardInterrupt(), "never finite"), (DivergedError("not finite"), "not finite")]
)
def test_a_run_without_a_picture_says_why(failure, reason):
    with pytest.raises(InputError, match=f"^{reason}; no image was made$"):
        write_best(Run(), failure, Path("out.png"), None, {})
