"""Work in fresh processes: memory is a process's own, and accelerate's settings hold for a whole process.

`python -m splice_ff.benchmark.worker SPEC.json FOUND.json`, under torchrun for several.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from splice_ff.errors import InputError


def launch(
    work: str, arguments: Mapping[str, Any], device: torch.device, processes: int = 1, threads: int | None = None
) -> dict[str, Any]:
    """Do one of the works of `main` in fresh processes and return what (the first of) them found.

    Args:
        work: a key of its table.
        arguments: of the work, as JSON takes them; the device is added.
        device: for several processes of a GPU's kind, accelerate gives each its own.
        processes: how many, side by side.
        threads: of each, on the CPU; as many as here if None.

    Raises:
        InputError: the work refuses its arguments.
        RuntimeError: it fails, with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        spec, found = Path(name) / "spec.json", Path(name) / "found.json"
        spec.write_text(json.dumps({"work": work, "arguments": {**arguments, "device": str(device)}}))
        launcher = ["-m"]
        if processes > 1:
            # `accelerate launch --cpu --num_processes 2` starts one process only
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        environment = {
            "OMP_NUM_THREADS": str(threads or torch.get_num_threads()),
            "ACCELERATE_USE_CPU": str(device.type == "cpu").lower(),
            "HF_DATASETS_CACHE": str(Path(name) / "datasets"),
        }
        command = [sys.executable, *launcher, "splice_ff.benchmark.worker", str(spec), str(found)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        if done.returncode == 2 and processes == 1:
            raise InputError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
        if done.returncode or not found.exists():
            raise RuntimeError(f"{work} failed in its process:\n{done.stderr[-3000:]}")
        return json.loads(found.read_text())


def main() -> None:
    """What a fresh process does."""
    from splice_ff.benchmark.memory import memory_of_one_shot, memory_of_steps
    from splice_ff.benchmark.training import train_some_steps

    works: dict[str, Callable[..., dict[str, Any]]] = {
        "memory-of-steps": memory_of_steps,
        "memory-of-one-shot": memory_of_one_shot,
        "training": train_some_steps,
    }
    spec, found = map(Path, sys.argv[1:])
    asked = json.loads(spec.read_text())
    try:
        result = works[asked["work"]](**asked["arguments"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if os.environ.get("RANK", "0") == "0":
        found.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
