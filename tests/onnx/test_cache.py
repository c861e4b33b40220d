"""`transfer` exports a model once, in the background, and from then on paints without torch."""

import os
import shutil
import sys
import time

import pytest
from PIL import Image
from support.one_shot_model import random_image
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.images import load_image, save_image
from splice_ff.onnx import cache

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs the extra [onnx]")

pytestmark = pytest.mark.timeout(900)  # tracing takes minutes on a slow machine


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Commands of background processes, none of which runs."""
    commands = []

    class Process:
        pid = os.getpid()

        def __init__(self, command, **_):
            commands.append(command)

    monkeypatch.setattr("splice_ff.onnx.cache.subprocess.Popen", Process)
    monkeypatch.setattr("splice_ff.onnx.cache.os.setpriority", lambda *_: None, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return commands


@pytest.fixture
def transfer(model, tmp_path, monkeypatch, started):
    """Run `transfer` of two images with a model's folder; returns what was said, and what painted."""
    monkeypatch.setattr("splice_ff.one_shot.pipeline.SpliceFF.from_pretrained", lambda *_, **__: model)
    monkeypatch.setenv("SPLICE_FF_RUNTIME", "auto")
    model.save_pretrained(tmp_path / "model")
    files = [str(save_image(tmp_path / f"{i}.png", random_image(i, 50, 61))) for i in range(2)]

    def run(*options):
        output = tmp_path / "out.png"
        command = ["transfer", *files, "-o", str(output), "--model", str(tmp_path / "model"), *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.stderr
        with Image.open(output) as image:
            return result.stderr, image.text.get("runtime", "torch"), load_image(output).rgb

    return run


def test_the_first_image_is_painted_by_torch_and_the_next_without(transfer, exported, started, tmp_path):
    said, runtime, by_torch = transfer()
    assert runtime == "torch" and said.count("note: exporting the model once, in the background") == 1
    ((*command, folder, quiet),) = started
    assert command == [sys.executable, "-m", "splice_ff", "export", str(tmp_path / "model"), "-o"]
    assert quiet == "--quiet" and folder.startswith(str(tmp_path / "assets"))
    said, runtime, _ = transfer()  # the export is under way
    assert runtime == "torch" and "exporting" not in said and len(started) == 1
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    said, runtime, by_onnx = transfer()
    assert runtime == "onnx" and "exporting" not in said
    assert (by_onnx - by_torch).abs().max() < 1.5 / 255
    (tmp_path / "model/config.json").write_text((tmp_path / "model/config.json").read_text() + "\n")
    assert transfer()[1] == "torch" and len(started) == 2  # another model


@pytest.mark.parametrize(
    "options", [["--refine", "1"], ["--precision", "bf16"], ["--device", "cpu"], ["--size", "1100"]]
)
def test_what_only_torch_can_do_starts_no_export(transfer, exported, started, options, monkeypatch):
    monkeypatch.setattr("splice_ff.onnx.cache.find_export", lambda _: exported)
    assert transfer(*options, "--quiet")[1] == "torch" and not started


def test_an_export_that_failed_is_tried_again_after_a_day(started, tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    tries = [cache.export_in_background(str(tmp_path / "model")) for _ in range(2)]
    folder = started[0][-2]
    yesterday = time.time() - 25 * 3600
    os.utime(folder, (yesterday, yesterday))
    tries += [cache.export_in_background(str(tmp_path / "model")) for _ in range(2)]
    assert tries == [True, False, True, False]


@pytest.mark.parametrize("fault", ["no package", "hub", "no place"])
def test_where_it_cannot_export_torch_paints_on(started, tmp_path, model, fault, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    if fault == "no package":
        monkeypatch.setattr("splice_ff.onnx.cache.find_spec", lambda name: name != "onnxscript" or None)
    if fault == "no place":
        (tmp_path / "assets").write_text("no folder")
    assert not cache.export_in_background("owner/name" if fault == "hub" else str(tmp_path / "model"))
    assert not started
