"""ONNX files compute what torch computes, at any size, and run without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.one_shot_model import random_image
from typer.testing import CliRunner

import splice_ff
from splice_ff.cli import app
from splice_ff.errors import CheckpointError, InputError
from splice_ff.images import load_image, save_image

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

from splice_ff.onnx.export import halve_weights  # noqa: E402
from splice_ff.onnx.runner import OnnxSpliceFF  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # tracing takes minutes on a slow machine
SIZES = [(64, 64), (90, 70), (48, 131), (301, 77)]
"""The model's own, and larger and smaller ones; the last in several bands of rows."""


@pytest.mark.parametrize("kind", ["", "grid_"])
@pytest.mark.parametrize("size", SIZES)
def test_it_computes_what_torch_computes(request, kind, size):
    model, exported = (request.getfixturevalue(kind + name) for name in ("model", "exported"))
    structure, appearance = random_image(0, *size), random_image(1, 80, 100)
    runner = OnnxSpliceFF(exported, threads=1)
    tokens = model.embed(appearance)
    np.testing.assert_allclose(runner.embed(appearance.numpy()), tokens.numpy(), atol=1e-4, rtol=1e-4)
    for working in (64, 48, 96, 140):  # the model's own, reduced, and enlarged, beyond the image's size too
        expected = model.paint(structure, tokens, size=working).numpy()
        np.testing.assert_allclose(runner.paint(structure.numpy(), tokens.numpy(), working), expected, atol=1e-4)
    half, full = (model.paint(structure, tokens, size=working, strength=s).numpy() for s in (0.5, 1.0))
    assert np.abs(half - full).max() > 0.01
    made = runner.paint(structure.numpy(), tokens.numpy(), working, strength=0.5)
    np.testing.assert_allclose(made, half, atol=1e-4)


@pytest.mark.parametrize("kind", ["", "grid_"])
def test_graphs_name_no_folder_of_the_machine_that_exported_them(request, kind):
    import torch

    folder = request.getfixturevalue(f"{kind}exported")
    here = [str(Path(place).parent).encode() for place in (splice_ff.__file__, torch.__file__)]
    for graph in folder.glob("*.onnx"):
        assert not any(place in graph.read_bytes() for place in (*here, b"stack_trace", b'.py", line')), graph.name


def test_half_precision_halves_the_weights_and_keeps_the_image(exported, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    for name in ("encode", "paint"):
        graph = onnx.load(exported / f"{name}.onnx")
        halve_weights(graph)
        onnx.save(graph, tmp_path / f"{name}.onnx")
    full, half = ((folder / "paint.onnx").stat().st_size for folder in (exported, tmp_path))
    weights = [w for w in onnx.load(exported / "paint.onnx").graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
    large = sum(size for size in (np.prod(w.dims) for w in weights) if size >= 1024)
    assert large > 10_000 and full - half > 0.9 * 2 * large
    structure, appearance = random_image(0).numpy(), random_image(1).numpy()
    outputs = [r.paint(structure, r.embed(appearance)) for r in (OnnxSpliceFF(exported), OnnxSpliceFF(tmp_path))]
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 0.02


def test_it_runs_without_torch_and_keeps_alpha(exported, tmp_path):
    rgba = np.full((40, 50, 4), 200, np.uint8)
    rgba[:20, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "structure.png")
    Image.fromarray(rgba[..., :3] // 2).save(tmp_path / "appearance.png")
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from splice_ff.onnx.runner import OnnxSpliceFF\n"
        "image = OnnxSpliceFF(sys.argv[1])(sys.argv[2], sys.argv[3])\n"
        "print(image.mode, image.size, image.getchannel('A').getextrema())"
    )
    arguments = [str(exported), str(tmp_path / "structure.png"), str(tmp_path / "appearance.png")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "RGBA (50, 40) (0, 200)"


@pytest.mark.parametrize("name", ["model.json", "encode.onnx", "paint.onnx"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_folders_are_one_line(exported, tmp_path, name, damage):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=name) as caught:
        OnnxSpliceFF(folder)
    assert "\n" not in str(caught.value)


def test_another_format_and_other_tokens_are_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    card = json.loads((exported / "model.json").read_text())
    (tmp_path / "copy" / "model.json").write_text(json.dumps(card | {"format": "splice-ff onnx 0"}))
    with pytest.raises(CheckpointError, match="format 'splice-ff onnx 0'"):
        OnnxSpliceFF(tmp_path / "copy")
    with pytest.raises(InputError, match="appearance tokens of shape"):
        OnnxSpliceFF(exported).paint(random_image(0).numpy(), np.zeros((1, 2, 3), np.float32))
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(InputError, match="weights must not be negative"):
        OnnxSpliceFF(exported)(image, image, image, weights=[0, 0])
    runner = OnnxSpliceFF(exported)
    for options, words in (
        ({"size": 0}, "size must be at least 16"),
        ({"size": 9000}, "more than 64 megapixels"),
        ({"strength": 3}, "strength must be between 0 and 1"),
        ({"strength": float("nan")}, "strength must be between 0 and 1"),
        ({"weights": [1, 2]}, "1 looks and 2 weights"),
    ):
        with pytest.raises(InputError, match=words):
            runner(image, image, **options)
    with pytest.raises(InputError, match="0 looks"):
        runner(image)


def test_transfer_paints_through_it_without_torch(model, exported, tmp_path):
    for i in range(3):
        save_image(tmp_path / f"{i}.png", random_image(i, 60, 50))
    program = "import sys; sys.modules['torch'] = None\nfrom splice_ff.cli import main\nmain()"
    command = [
        sys.executable,
        "-c",
        program,
        "transfer",
        "0.png",
        "1.png",
        "2.png",
        "-o",
        "out.png",
        "--runtime",
        "onnx",
    ]
    options = ["--model", str(exported), "--weight", "3", "--weight", "1", "--strength", "0.5"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokens = model.mix([model.embed(load_image(tmp_path / f"{i}.png").rgb) for i in (1, 2)], [3, 1])
    expected = model.paint(load_image(tmp_path / "0.png").rgb, tokens, strength=0.5)
    output = load_image(tmp_path / "out.png").rgb
    assert (output - expected).abs().max() < 0.01
    with Image.open(tmp_path / "out.png") as image:
        assert image.text["runtime"] == "onnx" and image.text["strength"] == "0.5"
        assert image.text["weights"] == "3, 1"
    frames = [Image.new("RGB", (60, 50), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "0.gif", save_all=True, append_images=frames[1:])
    moving = [*command[:4], "0.gif", "1.png", "--runtime", "onnx", "--model", str(exported)]
    done = subprocess.run(moving, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "note: 0.gif: animated: first of 2 frames used" in done.stderr
    done = subprocess.run([*moving, "--quiet"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--runtime", "jax"], "unknown runtime 'jax'"),
        (["--runtime", "onnx", "--refine", "5"], "paints in one pass only"),
        (["--runtime", "onnx", "--model", "nowhere"], "`splice-ff export MODEL -o FOLDER`"),
    ],
)
def test_what_it_cannot_do_is_said(tmp_path, options, reason):
    files = [str(save_image(tmp_path / f"{i}.png", random_image(i))) for i in range(2)]
    result = CliRunner().invoke(app, ["transfer", *files, "-o", str(tmp_path / "out.png"), *options])
    assert result.exit_code == 2 and reason in " ".join(result.stderr.split())
    assert not (tmp_path / "out.png").exists()
