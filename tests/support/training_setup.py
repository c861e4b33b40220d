"""A training run small enough for seconds: random images of two labels and a random ViT, in files."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from support.checkpoint_files import CONFIG, checkpoint_folder

from splice_ff.images import save_image
from splice_ff.networks.teachers import Teacher
from splice_ff.training.config import load_config

CONFIGS = Path(__file__).parents[2] / "train" / "configs"


def write_run(folder: Path, vit_state, images: int = 12, **changes) -> Path:
    """Images, a backbone and a config; `changes` are `section__key=value`. Returns the config's path."""
    if (folder / "config.yaml").exists():  # the same run again
        return folder / "config.yaml"
    random = torch.Generator().manual_seed(0)
    for i in range(images):
        label = folder / "photos" / ("a", "b")[i % 2]
        label.mkdir(parents=True, exist_ok=True)
        coarse = torch.rand(1, 3, 5, 6, generator=random) * 0.5 + 0.5 * (i % 2)
        image = F.interpolate(coarse, (40, 48), mode="bicubic").clamp(0, 1)
        save_image(label / f"{i:02d}.png", image)
    backbone = checkpoint_folder(folder / "vit", CONFIG, vit_state)
    config = {
        "output": str(folder / "run"),
        "data": {"source": str(folder / "photos"), "held_out": "train", "size": 32, "workers": 0},
        "backbone": {"name": str(backbone)},
        "generator": {"size": "tiny"},
        "loss": {"vit_size": 32, "identity_every": 2},
        "optimizer": {"steps": 8, "batch_size": 2, "warmup_steps": 2, "ema_decay": 0.5},
        "run": {
            "log_every": 1, "validate_every": 4, "sample_every": 4, "checkpoint_every": 2, "validation_pairs": 3,
            "trackers": [],
        },
    }  # fmt: skip
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def read_config(path: Path, *overrides: str):
    return load_config(path, overrides)


def log_lines(output: Path, kind: str = "train") -> dict[int, dict]:
    """Lines of a run's log by step; of a step taken twice, the later."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == kind}


class _Colors(torch.nn.Module):
    """Two maps: colors of places, fine and coarse."""

    def forward(self, images):
        return [F.avg_pool2d(images, side) for side in (4, 8)]


def color_network():
    """A frozen network for `loss.realism` and `loss.kernel` that needs no weights."""
    return Teacher(_Colors(), [3, 3], (0.5,) * 3, (0.5,) * 3)
