"""This machine: its device and fastest number format, its memory, and what a reader needs to know to judge figures."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import torch

import splice_ff


def default_device() -> torch.device:
    """A CUDA GPU if there is one, else a Mac's (MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def available_devices() -> list[str]:
    """Names of the devices that torch can use here."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


@contextmanager
def plain_torch(*, gradients: bool = True, autocast: bool = False) -> Iterator[None]:
    """Torch's own defaults inside, whatever the caller has set: float32, on the CPU, with gradients, no autocast.

    Also a decorator.

    Args:
        gradients: whether they are recorded inside.
        autocast: leave the caller's as it is.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind in () if autocast else ("cpu", "cuda", "mps"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its matrix products are faster than float32's, else float32.

    GPUs are asked what they support. CPUs are timed, once a process, on products small enough not to be felt: with
    AMX bfloat16 is several times faster, with AVX512-bf16 alone it can be either, without both it is emulated and a
    hundred times slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    return max((torch.float32, torch.bfloat16), key=lambda dtype: matmul_rate(device, dtype, 256))


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int | None = None) -> float:
    """Floating-point operations a second of a product of two n x n matrices, best of five.

    Without n, of a size that keeps the device busy.
    """
    n = n or (8192 if device.type == "cuda" else 512)
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=random).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds[1:])  # the first call also sets the kernel up


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    # Linux hands a parent's ru_maxrss on to its children; the high-water mark is a process's own.
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    if own:
        return own
    if sys.platform == "win32":
        import psutil  # accelerate brings it; `resource` is for Unix only

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the GPU or of the machine was too small."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # For the machine's own memory, and for what cuBLAS and cuDNN allocate, torch has no class.
    signs = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def describe(device: torch.device) -> str:
    """The machine in one line: processor or GPU, threads, torch."""
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)} of {_processor()}"
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{gpu}{threads}, torch {torch.__version__}"


def version() -> str:
    """The package's version, with the commit where it runs from a git checkout, and whether that was changed."""
    try:
        _git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # installed inside another project's checkout, it is not ours
        commit, changes = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return splice_ff.__version__
    return f"{splice_ff.__version__}, commit {commit}{' with changes' if changes else ''}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(splice_ff.__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())
