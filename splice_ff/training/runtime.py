"""What both trainers do around a step, on top of accelerate: devices, folders, checkpoints, stopping, going on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from splice_ff.errors import DivergedError, InputError
from splice_ff.training.checkpoints import (
    Progress,
    RunState,
    checkpoint_steps,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)
from splice_ff.training.config_sections import OptimizerSection, RunSection
from splice_ff.training.log import RunLog
from splice_ff.utils.console import progress_bar
from splice_ff.utils.machine import default_device
from splice_ff.utils.run_folder import claim_folder, lock_folder
from splice_ff.utils.schedules import warmed_up

CONFIG = "config.yaml"
"""In the output folder: the settings of the run whose checkpoints it holds."""
DEAD_GRADIENT = 1e-12
"""A smaller norm of the gradient is none at all,"""
SMALL_LOSS = 1e-6
"""unless the loss is as small: there is nothing left to learn."""
USUAL_DECAY = 0.98
"""Of the moving average of the gradients' norms: it spans some 50 steps."""


def next_usual_norm(usual: float, norm: float, ratio: float) -> float:
    """The moving average of gradient norms after one more, which counts for at most `ratio` times the average."""
    return USUAL_DECAY * usual + (1 - USUAL_DECAY) * min(norm, ratio * usual)


def make_accelerator(precision: str, trackers: Sequence[str], folder: Path, accumulation: int = 1) -> Accelerator:
    """accelerate's view of the devices.

    Args:
        precision: "fp32" or "bf16".
        trackers: names that accelerate knows.
        folder: where they write.
        accumulation: batches whose gradients make a step.

    Raises:
        InputError: a tracker that is unknown or not installed, a precision that the device does not have, or another
            one than this process has trained in before: accelerate keeps one for the life of a process.
    """
    try:
        accelerator = Accelerator(
            cpu=default_device().type == "cpu",  # else several processes without a GPU see one each
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_steps=accumulation,
            log_with=list(trackers) or None,
            project_dir=str(folder),
        )
    except ValueError as error:
        raise InputError(f"run.precision={precision}, run.trackers={list(trackers)}: {error}") from error
    # accelerate would go on without them.
    if missing := sorted({*trackers} - {"all", *(str(tracker) for tracker in accelerator.log_with)}):
        raise InputError(f"run.trackers: install {', '.join(missing)}, or leave it out")
    return accelerator


def agree(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether any process raised each flag: one that stops alone would leave the others waiting."""
    if accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(raised, "sum").tolist()]


class TrainingLoop:
    """What both trainers do around a step: rates, skipping, counting, logging, checkpoints, stopping, going on.

        loop.resume()
        for _ in loop.steps(noted):
            loop.set_learning_rate()
            ...  # backward passes
            if loop.clip_gradients(total):
                loop.adam.step()
            loop.end_step(losses, count)

    Args:
        folder: of the run.
        accelerator: devices and processes.
        modules: all that changes while training, by name; the one called "model" is trained.
        adam: its optimizer.
        optimizer: settings.
        run: settings.
        checkpoint_every: steps; by the clock and at the end only, if None.
        unit: what a batch is made of, in the plural: "pairs".
        circumstances: see `RunState`.
        other_optimizers: whose state goes into checkpoints too, by name.
        quiet: no progress bar and no messages.
        name: of the run, where there are several.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        modules: Mapping[str, nn.Module],
        adam: torch.optim.AdamW,
        optimizer: OptimizerSection,
        run: RunSection,
        *,
        unit: str,
        checkpoint_every: int | None = None,
        circumstances: Mapping[str, int | str] | None = None,
        other_optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
        quiet: bool = False,
        name: str | None = None,
    ) -> None:
        self.folder, self.accelerator, self.optimizer, self.run = folder, accelerator, optimizer, run
        self.checkpoint_every, self.quiet, self.name = checkpoint_every, quiet, name
        self.model, self.adam = accelerator.prepare(modules["model"], adam)
        self.progress = Progress()
        circumstances = {"processes": accelerator.num_processes, **(circumstances or {})}
        self.state = RunState(modules, {"optimizer": adam, **(other_optimizers or {})}, self.progress, circumstances)
        self.log = RunLog(folder, accelerator, unit, quiet)
        self.resumed_at = 0
        self.skipped_in_a_row = 0
        self.gradient_norm = 0.0

    @property
    def step_count(self) -> int:
        """Steps taken so far."""
        return self.progress.step_count

    @property
    def is_done(self) -> bool:
        """Whether the last step is taken."""
        return self.step_count >= self.optimizer.steps

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens now."""
        return self.step_count % every == 0 or self.is_done

    @property
    def is_sane(self) -> bool:
        """Whether the last step was of use and left finite weights: only then is there something to judge and keep."""
        weights = (p for module in self.state.modules.values() for p in module.parameters())
        return not self.skipped_in_a_row and all(torch.isfinite(p).all() for p in weights)

    # -- a run ----------------------------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, if there is one, and begin to log; every process must call this.

        Raises:
            InputError: the folder's checkpoints are damaged or another model's, or it takes no files.
        """
        is_resumed = load_checkpoint(self.accelerator, self.folder, self.state, self.say)
        self.resumed_at = self.step_count
        self.log.open(self.step_count)
        return is_resumed

    def steps(self, noted: Sequence[int] = ()) -> Iterator[int]:
        """The number of steps taken before, once for each that is left; a checkpoint is written when it is due.

        Args:
            noted: signals; once there is one, the iterator saves the run and ends.

        Raises:
            DivergedError: too many steps in a row had useless gradients.
            CheckpointError: the folder takes no checkpoint.
        """
        saved_at = time.monotonic()
        if self.is_done:
            self.say(f"all {self.step_count} steps were taken before; set a larger optimizer.steps to go on")
        hidden = self.quiet or not self.accelerator.is_main_process
        with progress_bar(self.optimizer.steps, "step", hidden, self.step_count, self.name) as bar:
            while not self.is_done:
                yield self.step_count
                bar.set_postfix({k: f"{v:.3f}" for k, v in self.log.means.items()}, refresh=False)
                bar.update()
                self._stop_if_diverged()
                minutes = (time.monotonic() - saved_at) / 60
                stop, late = agree(self.accelerator, bool(noted), minutes > self.run.checkpoint_minutes)
                is_due = self.is_due(self.checkpoint_every) if self.checkpoint_every else self.is_done
                if stop or late or is_due:
                    self.save()
                    saved_at = time.monotonic()
                if stop:
                    self.say(f"stopped at step {self.step_count}; the same command goes on from there")
                    return

    def save(self) -> None:
        """Write a checkpoint, if the run is sane."""
        if not self.is_sane:
            return
        save_checkpoint(self.accelerator, self.folder, self.state)
        if self.accelerator.is_main_process:
            prune_checkpoints(self.folder, self.run.checkpoints_total_limit, self.step_count - self._probation)

    def say(self, message: str) -> None:
        """A line for the reader."""
        self.log.say(f"{self.name}: {message}" if self.name else message)

    # -- a step ---------------------------------------------------------------------------------------------------

    def set_learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to 0 at the last step. Returns the step's rate."""
        settings = self.optimizer
        rate = warmed_up(settings.learning_rate, self.step_count, settings.warmup_steps, settings.steps)
        for group in self.adam.param_groups:
            group["lr"] = rate
        return rate

    def clip_gradients(self, total: Tensor) -> bool:
        """Scale the gradients down to the largest norm allowed, a given one or a multiple of the usual one.

        Gradients are averages over all processes, so that all of them decide alike.

        Args:
            total: the loss, a scalar.

        Returns:
            Whether they are of use: not if their norm is NaN or infinite, nor if it is 0 though there is a loss, as in
            a network whose activations have all saturated.
        """
        ratio, parameters = self.optimizer.max_grad_ratio, list(self.model.parameters())
        limit = math.inf if ratio else self.optimizer.max_grad_norm
        self.gradient_norm = self.accelerator.clip_grad_norm_(parameters, limit).item()
        is_usable = math.isfinite(self.gradient_norm)
        if ratio and is_usable and self.gradient_norm >= DEAD_GRADIENT:
            self._bring_to_usual(parameters, ratio)
        if is_usable and self.gradient_norm < DEAD_GRADIENT:
            is_usable = abs(self.accelerator.reduce(total.detach().float(), "mean").item()) < SMALL_LOSS
        self.skipped_in_a_row = 0 if is_usable else self.skipped_in_a_row + 1
        self.progress.skipped_steps += not is_usable
        return is_usable

    def _bring_to_usual(self, parameters: Sequence[nn.Parameter], ratio: float) -> None:
        """Divide the gradients by their usual norm, so that 1 is usual, and clip at `ratio`.

        AdamW would not need the division but for its epsilon: where the output layer is still near 0, gradients before
        it are so small that their size decides.
        """
        norm = self.gradient_norm
        usual = self.progress.usual_gradient_norm or norm
        scale = min(1 / usual, ratio / norm)
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], scale)
        self.progress.usual_gradient_norm = next_usual_norm(usual, norm, ratio)

    def end_step(self, losses: Mapping[str, Tensor | float], count: int, skipped_images: int = 0) -> None:
        """Count a step, and write to the log when it is due.

        Args:
            losses: scalars of this process.
            count: pairs or images of this process.
            skipped_images: of this process, that could not be read.
        """
        self.adam.zero_grad()
        torch.clear_autocast_cache()  # inside a caller's autocast nothing else empties it, and weights have changed
        self.progress.step_count += 1
        self.progress.seen += count * self.accelerator.num_processes
        rate = self.adam.param_groups[0]["lr"]
        self.log.add({**losses, "gradient_norm": self.gradient_norm, "learning_rate": rate}, count, skipped_images)
        if self.is_due(self.run.log_every):
            self.log.write(self.step_count, skipped_steps=self.progress.skipped_steps)

    # -- divergence -----------------------------------------------------------------------------------------------

    @property
    def _probation(self) -> int:
        """Weights are trusted once so many steps after them went well: the update that ruins them shows later."""
        return self.optimizer.max_skipped_steps

    def _stop_if_diverged(self) -> None:
        """Raise DivergedError after too many skipped steps, and have the next run go on from weights to be trusted."""
        skipped, settings = self.skipped_in_a_row, self.optimizer
        if skipped < min(settings.max_skipped_steps, max(2, settings.steps // 2)):
            return
        last_good = self.step_count - skipped
        for step in checkpoint_steps(self.folder) if self.accelerator.is_main_process else ():
            # Those that this run began with were good for a step at least; its own may be ruined already.
            if step > last_good - self._probation and not step == self.resumed_at < last_good:
                set_aside(self.folder, step, "diverged")
        self.accelerator.wait_for_everyone()
        left = checkpoint_steps(self.folder)
        raise DivergedError(
            f"{skipped} steps in a row had gradients that are NaN, infinite or all 0; the run goes on from "
            f"{f'step {left[-1]}' if left else 'its beginning'}: give it a smaller optimizer.learning_rate"
        )


@contextmanager
def own_folder(
    accelerator: Accelerator,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    fixed: Collection[str],
    is_started: bool,
    say: Callable[[str], object],
) -> Iterator[None]:
    """Keep other runs out of a folder while inside, and record the settings there. The main process does so for all.

    Args:
        accelerator: whose processes call.
        folder: of the run.
        settings: plain values by name.
        fixed: those that cannot change when a run goes on.
        is_started: whether there are checkpoints of the run already.
        say: told what has changed since they were written.

    Raises:
        InputError: another run writes there, or has been there with other fixed settings; the record is missing or
            damaged; or the folder takes no files.
    """
    with lock_folder(folder) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            record = folder / CONFIG
            if is_started and not record.exists():
                raise InputError(
                    f"{record}: missing, and it says what the checkpoints beside it are of; put it back, or choose "
                    "another output"
                )
            claim = claim_folder(record, settings, holds="a run", fixed=fixed if is_started else ())
            for name, (before, now) in claim.changed.items() if is_started else ():
                for change in _changes(name, before, now):
                    say(f"note: {change}")
        accelerator.wait_for_everyone()
        yield


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """What differs, setting by setting."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            yield from _changes(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{name}: {before!s:.80} before, {now!s:.80} now"
