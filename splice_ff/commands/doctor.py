"""`splice-ff doctor`: enough to see why a run is slow, or why weights are missing."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

import splice_ff
from splice_ff.commands._options import Debug, errors

PACKAGES = (
    "torch", "torchvision", "timm", "safetensors", "pillow", "accelerate", "datasets", "matplotlib", "onnxruntime",
    "gradio",
)  # fmt: skip
"""Named with their versions; the latter half comes with extras."""


def doctor(debug: Debug = False) -> None:
    """Show versions, devices, number formats, backbones and checkpoints at hand."""
    with errors(debug):
        for line in _report():
            typer.echo(line)


def _report() -> Iterator[str]:
    """Lines of text. Nothing is downloaded and the network is not asked."""
    import torch
    from PIL import features

    from splice_ff.one_shot.model_files import bundled_models
    from splice_ff.utils.files import checkpoints_dir
    from splice_ff.utils.machine import default_device, matmul_rate
    from splice_ff.vit.spec import BACKBONES, BUNDLED
    from splice_ff.vit.weights import cached_weights, load_backbone

    yield f"python {platform.python_version()} on {platform.platform()}"
    yield f"splice-ff {splice_ff.__version__} in {Path(splice_ff.__file__).parent}"
    yield "packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    device = default_device()
    yield f"runs on {device}" + (", as there is no GPU" if device.type == "cpu" else "")
    for dtype in (torch.float32, torch.bfloat16):
        yield f"matrix products on {device} in {str(dtype)[6:]}: {matmul_rate(device, dtype) / 1e9:.3g} GFLOP/s"
    yield "images: " + ", ".join(
        f"{name} {'yes' if features.check(name) else 'no'}" for name in ("jpg", "webp", "avif", "libtiff", "littlecms2")
    )
    models = bundled_models()
    for folder in sorted(config.parent for config in checkpoints_dir().glob("*/config.json")):
        if folder.name not in models:
            fingerprint = load_backbone(folder.name).fingerprint[:12]
            stands_in = ", stands in for DINO" if folder.name == BUNDLED else ""
            yield f"backbone {folder.name}: bundled in {folder}, sha256 {fingerprint}{stands_in}"
    for name in models:
        yield f"one-shot model {name}: bundled in {checkpoints_dir() / name}"
    for spec in BACKBONES.values():
        yield f"backbone {spec.name}: {cached_weights(spec) or 'not downloaded'}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
