"""A run of steps: its loop, and the file that it goes on from."""

import pytest
import torch

from splice_ff.errors import InputError
from splice_ff.utils.steps import SteppedRun


class Counter(SteppedRun[int]):
    """Its steps add up; the sum is its state."""

    def __init__(self, steps=5, name="a"):
        self.steps, self.name, self.total = steps, name, torch.zeros(())

    def step(self):
        self.step_count += 1
        self.total += self.step_count
        return self.step_count

    side = 500

    def is_sound(self):
        return True

    def identity(self):
        return {"name": self.name}

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


def test_a_run_takes_its_steps_and_tells_of_each():
    run, heard = Counter(), []
    run.run(lambda of, result: heard.append((of, result)))
    assert heard == [(run, i) for i in range(1, 6)] and run.done
    run.run(lambda *_: heard.append(None))
    assert len(heard) == 5


def test_a_run_that_is_stopped_can_go_on():
    run = Counter()
    run.run(lambda of, result: of.stop() if result == 2 else None)
    assert run.step_count == 2 and not run.done
    run.run()
    assert run.step_count == 5


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_a_saved_run_goes_on_with_more_steps_or_fewer(tmp_path, steps):
    first = Counter()
    first.run(lambda of, result: of.stop() if result == 2 else None)
    first.save(tmp_path / "state.pt")
    second = Counter(steps)
    second.load(tmp_path / "state.pt")
    assert second.step_count == 2
    second.run()
    assert second.step_count == steps and second.total == sum(range(steps + 1))


def saved(path, changes=None, run=None):
    run = run or Counter()
    run.run(lambda of, result: of.stop() if result == 2 else None)
    run.save(path)
    if changes:
        torch.save(torch.load(path) | changes, path)
    return path


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a saved state"),
        (lambda path: path.write_text("text"), "not a saved state"),
        (lambda path: path.write_bytes(b""), "not a saved state"),
        (lambda path: torch.save([1, 2], path), "not a saved state"),
        (lambda path: saved(path, {"state": {}}), "damaged"),
        (lambda path: saved(path, {"state": None}), "damaged"),
        (lambda path: saved(path, {"step_count": "many"}), "not a saved state"),
        (lambda path: saved(path, run=Counter(name="b")), r"another run \(different: name\)"),
        (lambda path: saved(path, {"run": {}}), r"another run \(different: name\)"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(tmp_path, damage, says):
    damage(saved(tmp_path / "state.pt"))
    run = Counter()
    with pytest.raises(InputError, match=says) as caught:
        run.load(tmp_path / "state.pt")
    assert "state.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert run.step_count == 0


def test_a_run_that_is_past_the_steps_asked_for_says_so(tmp_path):
    saved(tmp_path / "state.pt")
    with pytest.raises(InputError, match="has taken 2 steps already"):
        Counter(steps=1).load(tmp_path / "state.pt")
