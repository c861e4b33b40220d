"""Runs of many steps in a command: their progress, ctrl-C, the file they go on from, and how they end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from splice_ff.commands._options import say
from splice_ff.errors import InputError
from splice_ff.utils.console import progress_bar

if TYPE_CHECKING:
    from splice_ff.analysis.inversion import FeatureInversion
    from splice_ff.errors import DivergedError
    from splice_ff.images import LoadedImage
    from splice_ff.per_pair.optimizer import PairOptimizer, PairResult

    Failure = KeyboardInterrupt | DivergedError | None

SAVE_STATE_EVERY = 100


def resume(run: PairOptimizer | FeatureInversion, state: Path | None, quiet: bool) -> None:
    """Go on from the state file, if there is one.

    Raises:
        InputError: it is damaged, or another run's.
    """
    from splice_ff.per_pair.optimizer import load_state

    if state and state.exists():
        load_state(run, state)
        if not quiet:
            say(f"going on from step {run.step_count} of {state}")


def take_steps(
    run: PairOptimizer | FeatureInversion,
    figures: Callable[[Any], Mapping[str, float]],
    quiet: bool,
    *,
    state: Path | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> Failure:
    """Take the remaining steps under a progress bar.

    Args:
        run: what takes them.
        figures: what the bar shows of that which a step returns.
        quiet: no bar.
        state: where the run is kept, every `SAVE_STATE_EVERY` steps and at the end, unless it has diverged.
        after_step: called after each step.

    Returns:
        What ended them early: ctrl-C, heard between two steps (the second one at once), or losses that are no longer
        finite. It is for `end_run`, once what there is has been written.
    """
    from splice_ff.errors import DivergedError
    from splice_ff.per_pair.optimizer import save_state

    failure: Failure = None
    try:
        with progress_bar(run.recipe.steps, "step", quiet, run.step_count) as shown, _noted_interrupts() as noted:
            while not (run.done or noted):
                found = figures(run.step())
                shown.set_postfix({name: f"{value:.4g}" for name, value in found.items()}, refresh=False)
                shown.update()
                after_step()
                if state and run.step_count % SAVE_STATE_EVERY == 0:
                    save_state(run, state)
        if noted:
            failure = KeyboardInterrupt()
    except (KeyboardInterrupt, DivergedError) as error:
        failure = error
    if state and not isinstance(failure, DivergedError):
        save_state(run, state)
    return failure


def write_best(
    run: PairOptimizer, failure: Failure, output: Path, structure: LoadedImage, facts: Mapping[str, str]
) -> PairResult:
    """Write the best image of a run so far, with its losses among the facts.

    Raises:
        InputError: there is none, or it cannot be written.
    """
    from splice_ff.errors import DivergedError
    from splice_ff.images import save_image

    try:
        result = run.result()
    except DivergedError as error:
        reason = failure if isinstance(failure, DivergedError) else error
        raise InputError(f"{reason}; no image was made") from error
    losses = {f"loss_{name}": f"{value:.6g}" for name, value in result.losses.items()}
    save_image(output, result.image, alpha=structure.alpha, settings={**facts, "step": str(result.step), **losses})
    return result


def end_pair(run: PairOptimizer, failure: Failure, result: PairResult, output: Path, quiet: bool) -> None:
    """Say what `write_best` wrote, or why the run ended early; see `end_run`."""
    end_run(run, failure, f"the best image so far is in {output}")
    if not quiet:
        total, *rest = (f"{name} {value:.4f}" for name, value in result.losses.items())
        say(f"{output}: step {result.step} of {run.step_count}, whole image: {total} ({', '.join(rest)})")


def end_run(run: PairOptimizer | FeatureInversion, failure: Failure, kept: str) -> None:
    """Return if the run was not ended early; else say so, and what was kept.

    Raises:
        typer.Exit: with status 130, after ctrl-C.
        InputError: it has diverged.
    """
    if isinstance(failure, KeyboardInterrupt):
        say(f"interrupted at step {run.step_count}; {kept}")
        raise typer.Exit(130)
    if failure:
        raise InputError(f"{failure}; {kept}") from failure


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """While inside, the first ctrl-C is only noted: raised in the midst of a callback it would be lost."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
