"""Two exported models for all tests of this room: tracing takes its time."""

from dataclasses import replace

import pytest
from filelock import FileLock
from support.one_shot_model import make_model
from support.tiny_vit import make_vit
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.networks.cross_attention_unet import UNetConfig
from splice_ff.vit.features import ViTFeatures

SMALL = UNetConfig((8, 16, 24), blocks=1, attention_from=1, heads=2, tokens=8, token_channels=32)
"""Every kind of layer that a UNet has; tracing takes as long as there are layers, of any width."""


@pytest.fixture(scope="session")
def model():
    return make_model(ViTFeatures(make_vit(depth=2)), generator=SMALL)


@pytest.fixture(scope="session")
def grid_model():
    """One whose color maps lie in a bilateral grid, as those of `everyday`."""
    grid = replace(SMALL, bins=4, parts=2, keeps_fine_colors=True)
    return make_model(ViTFeatures(make_vit(depth=2)), generator=grid)


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory, worker_id):
    return export_once("plain", model, tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def grid_exported(grid_model, tmp_path_factory, worker_id):
    return export_once("grid", grid_model, tmp_path_factory, worker_id)


def export_once(name, model, tmp_path_factory, worker_id):
    """Export a model for all of pytest-xdist's workers: the first that asks does it, and the others wait."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra [onnx]")
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / f"exported-{name}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "model.json").exists():
            export(model, folder)
    return folder


def export(model, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("splice_ff.one_shot.pipeline.SpliceFF.from_pretrained", lambda *_: model)
        result = CliRunner().invoke(app, ["export", "any", "-o", str(folder)])
        assert result.exit_code == 0, result.output
        assert CliRunner().invoke(app, ["export", "any", "-o", str(folder), "--precision", "int4"]).exit_code == 2
