"""Work in fresh processes: memory is a process's own, and accelerate's settings hold for a whole process.

`python -m splice_ff.benchmark.fresh_process SPEC.json FOUND.json`, under torchrun for several.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from splice_ff.errors import InputError


def in_fresh_process(
    work: Callable[..., dict[str, Any]],
    *,
    device: torch.device,
    processes: int = 1,
    threads: int | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Call a function in fresh processes and return what (the first of) them returns.

    Args:
        work: a function of a module, which the processes import by its name; its result is what JSON can hold.
        device: given to the function by its name; for several processes on GPUs, accelerate gives each its own.
        processes: how many, side by side.
        threads: of each, on the CPU; as many as here if None.
        arguments: of the function, as JSON takes them.

    Raises:
        InputError: the function refuses its arguments.
        RuntimeError: it fails, with the end of what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as name:
        spec, result = Path(name) / "spec.json", Path(name) / "result.json"
        spec.write_text(
            json.dumps(
                {
                    "module": work.__module__,
                    "function": work.__name__,
                    "arguments": {**arguments, "device": str(device)},
                }
            )
        )
        launcher = ["-m"]
        if processes > 1:
            # `accelerate launch --cpu --num_processes 2` starts one process only
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        environment = {
            "OMP_NUM_THREADS": str(threads or torch.get_num_threads()),
            "ACCELERATE_USE_CPU": str(device.type == "cpu").lower(),
            "HF_DATASETS_CACHE": str(Path(name) / "datasets"),
        }
        command = [sys.executable, *launcher, __name__, str(spec), str(result)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        if done.returncode == 2 and processes == 1:
            raise InputError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
        if done.returncode or not result.exists():
            raise RuntimeError(f"{work.__name__} failed in its process:\n{done.stderr[-3000:]}")
        return json.loads(result.read_text())


def main() -> None:
    """What a fresh process does."""
    spec, result = map(Path, sys.argv[1:])
    asked = json.loads(spec.read_text())
    work = getattr(import_module(asked["module"]), asked["function"])
    try:
        found = work(**asked["arguments"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if os.environ.get("RANK", "0") == "0":
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
