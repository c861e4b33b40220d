"""Runs of many steps in a command: their progress, ctrl-C, the file they go on from, and how they end."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from splice_ff.commands._options import out_of_memory, say
from splice_ff.errors import DivergedError, InputError
from splice_ff.utils.console import noted_signals, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from splice_ff.images import LoadedImage
    from splice_ff.per_pair.optimizer import PairOptimizer, PairResult
    from splice_ff.utils.steps import SteppedRun

SAVE_STATE_EVERY = 100


def resume(run: SteppedRun[Any], state: Path | None, quiet: bool) -> None:
    """Go on from the state file, if there is one.

    Raises:
        InputError: it is damaged, another run's, or further on than this run shall go.
    """
    if state and state.exists():
        run.load(state)
        if not quiet:
            say(f"going on from step {run.step_count} of {state}")


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, by the signal of this number."""


def take_steps(
    run: SteppedRun[Any],
    figures: Callable[[Any], Mapping[str, float]],
    quiet: bool,
    *,
    state: Path | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> BaseException | None:
    """Take the remaining steps under a progress bar.

    Args:
        run: what takes them.
        figures: what the bar shows of that which a step returns.
        quiet: no bar.
        state: where the run is kept, every `SAVE_STATE_EVERY` steps and at the end, whatever ends it. A state whose
            losses are not finite never replaces a sound one.
        after_step: called after each step.

    Returns:
        What ended them early: ctrl-C or SIGTERM, heard between two steps (the second one at once), or any error. It is
        for `end_run`, once the best so far has been written.
    """
    failure: BaseException | None = None
    with progress_bar(run.steps, "step", quiet, run.step_count) as bar, noted_signals(impatient=True) as noted:

        def on_step(_: Any, losses: Any) -> None:
            bar.set_postfix({name: f"{value:.4g}" for name, value in figures(losses).items()}, refresh=False)
            bar.update()
            after_step()
            if state and run.step_count % SAVE_STATE_EVERY == 0 and run.is_sound():
                run.save(state)
            if noted:
                run.stop()

        try:
            run.run(on_step)
        except (KeyboardInterrupt, Exception) as error:
            failure = error
            traceback.clear_frames(error.__traceback__)  # their tensors would keep the memory that we need now
    if noted:
        failure = Interrupted(noted[0])
    if state and not isinstance(failure, DivergedError):
        try:
            if run.is_sound():
                run.save(state)
        except Exception as error:
            failure = failure or error
    return failure


def taken_losses(run: PairOptimizer, losses: Mapping[str, float]) -> dict[str, float]:
    """Losses by name, without an identity loss that the recipe never takes: its 0 would look like a perfect one."""
    return {name: value for name, value in losses.items() if name != "identity" or run.recipe.identity_every}


def write_best(
    run: PairOptimizer, failure: BaseException | None, output: Path, structure: LoadedImage, facts: Mapping[str, str]
) -> PairResult[Tensor]:
    """Write the best image of a run so far, with its losses among the facts.

    Raises:
        InputError: there is none, or it cannot be written.
    """
    from splice_ff.images import save_image

    try:
        result = run.result()
    except Exception as error:
        end_run(run, failure or error, "no image was made")
        raise
    losses = {f"loss_{name}": f"{value:.6g}" for name, value in taken_losses(run, result.losses).items()}
    save_image(output, result.image, alpha=structure.alpha, settings={**facts, "step": str(result.step), **losses})
    return result


def end_pair(
    run: PairOptimizer, failure: BaseException | None, result: PairResult[Tensor], output: Path, quiet: bool
) -> None:
    """Say what `write_best` wrote, or why the run ended early; see `end_run`."""
    end_run(run, failure, f"the best image so far is in {output}")
    if not quiet:
        total, *rest = (f"{name} {value:.4f}" for name, value in taken_losses(run, result.losses).items())
        where = f"the best of {run.step_count} steps is step {result.step}"
        say(f"{output}: {where}; losses of the whole image: {total} ({', '.join(rest)})")


def end_run(run: SteppedRun[Any], failure: BaseException | None, kept: str) -> None:
    """Return if the run was not ended early; else say so, and what was kept.

    Raises:
        typer.Exit: after ctrl-C (status 130) or SIGTERM (143).
        InputError: it has diverged, ran out of memory, or could not write a file.
        Exception: any other error that ended it.
    """
    if failure is None:
        return
    if isinstance(failure, KeyboardInterrupt):
        say(f"interrupted at step {run.step_count}; {kept}")
        raise typer.Exit(128 + (failure.args[0] if isinstance(failure, Interrupted) else signal.SIGINT))
    if message := out_of_memory(failure, run.side):
        raise InputError(f"{message}; {kept}") from failure
    if isinstance(failure, (InputError, DivergedError)):
        raise InputError(f"{failure}; {kept}") from failure
    say(f"stopped by an error at step {run.step_count + 1}; {kept}")
    raise failure
