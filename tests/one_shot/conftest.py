"""A small model with its images, and commands that are run on it."""

import pytest
import torch
from support.checkpoint_files import CONFIG, checkpoint_folder
from support.one_shot_model import make_model, random_image
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.images import save_image
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.vit.weights import load_backbone


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images (a.png, b.png, c.png), a backbone and a model. Shared: do not change it."""
    from support.tiny_vit import make_vit

    folder = tmp_path_factory.mktemp("place")
    checkpoint_folder(folder / "vit", CONFIG, make_vit(depth=2).state_dict())
    make_model(load_backbone(str(folder / "vit")), card={"data": "noise"}).save_pretrained(folder / "model")
    for seed, name in enumerate("abc"):
        save_image(folder / f"{name}.png", random_image(seed, 72, 96))
    return folder


@pytest.fixture
def model(place):
    return SpliceFF.from_pretrained(place / "model", backbone=place / "vit")


@pytest.fixture
def run(place, monkeypatch):
    """Run a command on the model; names of images are those of `place`."""
    # not timed: that takes seconds where bfloat16 is emulated
    monkeypatch.setattr("splice_ff.per_pair.optimizer.fastest_dtype", lambda device: torch.float32)

    def call(*arguments):
        arguments = [place / f"{a}.png" if a in ("a", "b", "c") else a for a in arguments]
        defaults = ["--backbone", place / "vit", "--device", "cpu"]
        if "--model" not in arguments:
            defaults += ["--model", place / "model"]
        return CliRunner().invoke(app, [str(a) for a in [*arguments, *defaults]])

    return call
