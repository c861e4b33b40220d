"""Checkpoints of a training run, from which it goes on as if it had not stopped.

A checkpoint is a folder `step-…` of safetensors and JSON, formats that cannot run code; accelerate's own checkpoints
can, in part. `state.json` lists the SHA-256 of every other file; what it does not list is not read. The folder
gets its name once all of its files lie on the disk: one called `step-…` is whole unless it was damaged later.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from splice_ff.errors import CheckpointError, InputError
from splice_ff.utils.files import reason, sync_folder, write_file
from splice_ff.utils.tensor_files import read_tensors, write_tensors

FORMAT: Literal["splice-ff run state 1"] = "splice-ff run state 1"
RECORD = "state.json"
NAME = "step-{:08d}"


class Progress(BaseModel):
    """How far a run has come."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    step_count: int = Field(0, ge=0)
    seen: int = Field(0, ge=0)
    """Pairs or images that all processes together have taken."""
    skipped_steps: int = Field(0, ge=0)
    """Steps whose gradients were of no use."""
    usual_gradient_norm: float = Field(0.0, ge=0)
    """A moving average of the gradients' norms, where `optimizer.max_grad_ratio` needs it; 0 before the first step."""
    results: dict[str, float] = {}
    """Measurements that a run has to remember."""


@dataclass(frozen=True)
class RunState:
    """All that changes while a run trains.

    Attributes:
        modules: whose parameters and buffers change, by name; not wrapped by accelerate.
        optimizers: likewise. Their rates are settings, not state.
        progress: counters.
        circumstances: what may be different when the run goes on, and is then said.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    progress: Progress
    circumstances: Mapping[str, int | str]


class _Record(BaseModel):
    """state.json."""

    format: Literal["splice-ff run state 1"] = FORMAT
    progress: Progress
    circumstances: dict[str, int | str]
    files: dict[str, str]


def save_checkpoint(accelerator: Accelerator, output: Path, state: RunState) -> None:
    """Write `OUTPUT/checkpoints/step-…`; every process must call this. Machines must share the folder.

    Raises:
        CheckpointError: the folder takes no files, or a tensor is not finite; nothing is left of the checkpoint.
    """
    folder = output / "checkpoints" / NAME.format(state.progress.step_count)
    unfinished = folder.with_name(f"unfinished-{folder.name}")
    try:
        if accelerator.is_main_process:
            for old in folder.parent.glob("unfinished-*"):
                shutil.rmtree(old)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        random = f"random-{accelerator.process_index:05d}.safetensors"
        write_tensors(unfinished / random, _random_states(accelerator.device), {"format": FORMAT})
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for name, module in state.modules.items():
                write_tensors(unfinished / f"{name}.safetensors", module.state_dict(), {"format": FORMAT})
            for name, optimizer in state.optimizers.items():
                write_tensors(unfinished / f"{name}.safetensors", _optimizer_tensors(optimizer), {"format": FORMAT})
            files = {file.name: _sha256(file) for file in sorted(unfinished.glob("*.safetensors"))}
            record = _Record(progress=state.progress, circumstances=dict(state.circumstances), files=files)
            write_file(unfinished / RECORD, record.model_dump_json(indent=1).encode())
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
            sync_folder(folder.parent)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: cannot be written ({reason(error)})") from error
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, output: Path, state: RunState, say: Callable[[str], object]) -> bool:
    """Take over the newest whole checkpoint; every process must call this. Damaged newer ones are renamed.

    Args:
        accelerator: whose processes call.
        output: the run's folder.
        state: what is filled.
        say: told of damaged checkpoints, and of circumstances that have changed.

    Returns:
        Whether there was one.

    Raises:
        InputError: there are only damaged ones, or one of another model.
    """
    found = _newest_whole(output, [*state.modules, *state.optimizers], say) if accelerator.is_main_process else 0
    step = int(accelerator.reduce(torch.tensor(found, device=accelerator.device), "sum").item())
    if step == NONE:
        return False
    folder = output / "checkpoints" / NAME.format(step)
    if step == ALL_DAMAGED:
        raise InputError(
            f"{folder.parent}: none of the checkpoints there is whole; choose another output, or move them away"
        )
    if step == OTHER_RUN:
        raise InputError(
            f"{folder.parent}: the newest checkpoint is of a run without a part of this one, such as a discriminator; "
            "choose another output, and begin with generator.start_from"
        )
    record = _read_record(folder)
    try:
        for name, module in state.modules.items():
            module.load_state_dict(_read(folder / f"{name}.safetensors"))
        for name, optimizer in state.optimizers.items():
            _load_optimizer(optimizer, _read(folder / f"{name}.safetensors"))
    except (RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: is of another model; choose another output") from error
    random = f"random-{accelerator.process_index:05d}.safetensors"
    if random in record.files:
        _set_random_states(_read(folder / random), accelerator.device)
    for name, value in record.progress:
        setattr(state.progress, name, value)
    for name, now in state.circumstances.items():
        if (before := record.circumstances.get(name, now)) != now:
            say(f"note: {name}: {before} before, {now} now")
    say(f"going on from step {step} ({folder})")
    return True


def checkpoint_steps(output: Path) -> list[int]:
    """Steps of the checkpoints in an output folder, whole or not, in order."""
    names = (path.name.removeprefix("step-") for path in (output / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def prune_checkpoints(output: Path, limit: int, proven: int) -> None:
    """Remove all but the newest few, the newest that was taken up to step `proven`, and the one that will follow it."""
    steps = checkpoint_steps(output)
    trusted = [step for step in steps if step <= proven]
    kept = {*steps[-limit:], *trusted[-1:], *steps[len(trusted) : len(trusted) + 1]}
    for step in set(steps) - kept:
        shutil.rmtree(output / "checkpoints" / NAME.format(step), ignore_errors=True)


def set_aside(output: Path, step: int, why: str) -> Path:
    """Rename a checkpoint so that no run goes on from it: `damaged-step-…`. Returns its new place."""
    folder = output / "checkpoints" / NAME.format(step)
    places = (folder.with_name(f"{why}-{folder.name}{f'-{i}' if i else ''}") for i in range(1000))
    place = next(place for place in places if not place.exists())
    folder.rename(place)
    return place


NONE, ALL_DAMAGED, OTHER_RUN = -1, -2, -3


class _OtherRunError(CheckpointError):
    """A whole checkpoint of a run with other parts."""


def _newest_whole(output: Path, parts: Sequence[str], say: Callable[[str], object]) -> int:
    """The step of the newest whole checkpoint; or `NONE`, `ALL_DAMAGED`, or, if it lacks parts, `OTHER_RUN`."""
    faults = {}
    for step in reversed(checkpoint_steps(output)):
        folder = output / "checkpoints" / NAME.format(step)
        try:
            _check(folder, step, parts)
        except _OtherRunError as error:
            say(f"note: {error}")
            return OTHER_RUN
        except CheckpointError as error:
            faults[step] = error
            continue
        for damaged, fault in faults.items():
            say(f"note: {fault}; it is kept as {set_aside(output, damaged, 'damaged').name}")
        return step
    for fault in faults.values():
        say(f"note: {fault}")
    return ALL_DAMAGED if faults else NONE


def _check(folder: Path, step: int, parts: Sequence[str]) -> None:
    """Raise CheckpointError unless every file is there as it was written."""
    record = _read_record(folder)
    missing = [part for part in parts if f"{part}.safetensors" not in record.files]
    if record.progress.step_count != step or len(missing) == len(parts):
        raise CheckpointError(f"{folder / RECORD}: damaged")
    for name, sha256 in record.files.items():
        file = folder / name
        try:
            if file.parent != folder or not file.is_file() or _sha256(file) != sha256:
                raise CheckpointError(f"{file}: missing or damaged")
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({reason(error)})") from error
    if missing:
        raise _OtherRunError(f"{folder}: of a run without {', '.join(missing)}")


def _read_record(folder: Path) -> _Record:
    try:
        return _Record.model_validate_json((folder / RECORD).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder / RECORD}: cannot be read ({reason(error)})") from error
    except (ValidationError, RecursionError) as error:
        raise CheckpointError(f"{folder / RECORD}: damaged, or of another version") from error


def _read(file: Path) -> dict[str, Tensor]:
    return read_tensors(file, "state of a run", FORMAT)[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, state in states.items() for name, tensor in state.items()}


@torch.no_grad()
def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")
        parameter = parameters[int(index)]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(f"{key}: another shape")
        # Files hold no strides, and the fused optimizer takes its state to be laid out as the parameter is.
        states.setdefault(int(index), {})[name] = torch.empty_like(parameter).copy_(tensor) if tensor.ndim else tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Of torch's generators, which all random numbers of a run come from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "mps":
        return states | {"mps": torch.mps.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
