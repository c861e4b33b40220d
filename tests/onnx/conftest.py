"""One exported model for all tests of this room: tracing takes its time."""

import pytest
from support.one_shot_model import make_model
from support.tiny_vit import make_vit
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.vit.features import ViTFeatures


@pytest.fixture(scope="session")
def model():
    return make_model(ViTFeatures(make_vit()))


@pytest.fixture(scope="session")
def grid_model():
    """One whose color maps lie in a bilateral grid."""
    return make_model(ViTFeatures(make_vit()), generator="tiny-grid")


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    return export(model, tmp_path_factory)


@pytest.fixture(scope="session")
def grid_exported(grid_model, tmp_path_factory):
    return export(grid_model, tmp_path_factory)


def export(model, tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra [onnx]")
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("splice_ff.one_shot.pipeline.SpliceFF.from_pretrained", lambda *_: model)
        result = CliRunner().invoke(app, ["export", "any", "-o", str(folder)])
        assert result.exit_code == 0, result.output
        assert CliRunner().invoke(app, ["export", "any", "-o", str(folder), "--precision", "int4"]).exit_code == 2
    return folder
