"""Runs of many steps: the loop around them, and the file from which an interrupted one goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch

from splice_ff.errors import InputError
from splice_ff.utils.files import reason, write_file

StepResult = TypeVar("StepResult")


class SteppedRun(ABC, Generic[StepResult]):
    """A run that takes one step at a time, stops between two, and goes on from a file as if it had not stopped."""

    steps: int
    """How many it takes at most."""
    step_count: int = 0
    """How many it has taken."""
    _is_stopped = False

    @property
    def done(self) -> bool:
        """All steps are taken."""
        return self.step_count >= self.steps

    @abstractmethod
    def step(self) -> StepResult:
        """Take one step; its losses.

        Raises:
            DivergedError: a loss is NaN or infinite; the weights are those of before the step.
        """

    @property
    @abstractmethod
    def side(self) -> int:
        """Shorter side, in pixels, of the images that it works on."""

    @abstractmethod
    def is_sound(self) -> bool:
        """Whether its losses are finite now: only such a state is worth keeping."""

    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What makes this run and no other, apart from its number of steps: a saved state fits only the same."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step but `step_count`: tensors, numbers, lists and dictionaries of them."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    def run(self, on_step: Callable[[Self, StepResult], object] | None = None) -> None:
        """Take the remaining steps.

        Args:
            on_step: called after every step with the run and the step's losses; it may call `stop`.
        """
        self._is_stopped = False
        while not (self.done or self._is_stopped):
            result = self.step()
            if on_step:
                on_step(self, result)

    def stop(self) -> None:
        """End `run` after the step that is under way; a later `run` goes on."""
        self._is_stopped = True

    def save(self, path: Path) -> None:
        """Write the run's state, whole or not at all.

        Raises:
            InputError: the place takes no file.
        """
        file = BytesIO()
        record = {"run": dict(self.identity()), "steps": self.steps, "step_count": self.step_count}
        torch.save({**record, "state": self.state_dict()}, file)
        try:
            write_file(path, file.getvalue())
        except OSError as error:
            raise InputError(f"{path}: the run's state cannot be written ({reason(error)})") from error

    def load(self, path: Path) -> None:
        """Go on from a state that `save` wrote. A run may have more steps than when it was saved, or fewer.

        Raises:
            InputError: the file is damaged, belongs to another run (other images, recipe, seed or backbone), or has
                taken more steps than this run shall.
        """
        try:
            record = torch.load(path, map_location="cpu", weights_only=True)
            theirs, step_count, state = dict(record["run"]), int(record["step_count"]), record["state"]
        except Exception as error:  # torch.load raises whatever its unpickler trips over
            raise InputError(f"{path}: not a saved state of a run, or damaged; remove it to begin anew") from error
        ours = self.identity()
        if changed := [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]:
            raise InputError(
                f"{path}: the saved state belongs to another run (different: {', '.join(changed)}); choose another file"
            )
        if step_count > self.steps:
            raise InputError(
                f"{path}: has taken {step_count} steps already, more than {self.steps}; ask for as many, or remove it"
            )
        try:
            self.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(f"{path}: a damaged state; remove it to begin anew") from error
        self.step_count = step_count
