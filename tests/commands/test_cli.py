"""The command line, end to end on a tiny backbone: good images, or one line, exit 2 and no half-written file."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.images import load_image
from splice_ff.per_pair.recipes import PRESETS

QUICK = ["--steps", "2", "--size", "64", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def short_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], copy_steps=1, views=2))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with a structure and an appearance image."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 6, 8, 3), dtype=np.uint8)
    for name, small in zip(("structure", "appearance"), pixels, strict=True):
        Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    """A checkpoint folder with a tiny random ViT."""
    folder = tmp_path_factory.mktemp("backbones") / "tiny"
    folder.mkdir()
    shape = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    config = {"architecture": "timm.models.VisionTransformer", **shape, "mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(VisionTransformer(**shape).state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def optimize(images, backbone_folder, tmp_path):
    """Run `optimize` in this process: (result, output path)."""

    def run(structure=images / "structure.png", appearance=images / "appearance.png", *options, output=None):
        output = output or tmp_path / "made" / "out.png"
        backbone = [] if "--backbone" in options else ["--backbone", str(backbone_folder)]
        arguments = ["optimize", str(structure), str(appearance), "-o", str(output), *QUICK, *backbone, *options]
        return CliRunner().invoke(app, [str(a) for a in arguments]), output

    return run


def assert_refused(result, output, *words):
    """Exit status 2, one line that holds the words, nothing written."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("note:")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0]
    if output.parent.is_dir():
        assert not list(output.parent.iterdir())


def test_a_good_pair(optimize, images):
    result, output = optimize()
    assert result.exit_code == 0, result.output
    with Image.open(output) as image:
        assert image.size == (96, 72)
        text = image.text
    assert text["structure"] == "structure.png" and text["steps"] == "2" and text["seed"] == "0"
    assert len(text["backbone_sha256"]) == 64 and float(text["loss_total"]) > 0
    assert "total" in result.stderr and result.stdout == ""


def test_quiet_is_quiet(optimize, images):
    result, output = optimize(images / "structure.png", images / "appearance.png", "--quiet")
    assert result.exit_code == 0 and output.exists()
    assert result.output == ""


# --- images that need care ----------------------------------------------------------------------------------


def test_rgba_keeps_its_alpha(optimize, tmp_path):
    image = Image.new("RGBA", (96, 72), (200, 30, 30, 255))
    image.paste((20, 30, 200, 40), (0, 0, 40, 40))
    image.save(tmp_path / "rgba.png")
    result, output = optimize(tmp_path / "rgba.png")
    assert result.exit_code == 0, result.output
    assert torch.equal(load_image(output).alpha, load_image(tmp_path / "rgba.png").alpha)


@pytest.mark.parametrize("kind", ["cmyk.jpg", "sixteen.png", "gray.png", "animated.gif"])
def test_unusual_images_work(optimize, tmp_path, kind):
    path = tmp_path / kind
    noise = np.random.default_rng(0)
    if kind == "cmyk.jpg":
        Image.fromarray(noise.integers(0, 255, (72, 96, 4), dtype=np.uint8), "CMYK").save(path)
    elif kind == "sixteen.png":
        Image.fromarray(noise.integers(0, 65535, (72, 96), dtype=np.uint16)).save(path)
    elif kind == "gray.png":
        Image.fromarray(noise.integers(0, 255, (72, 96), dtype=np.uint8)).save(path)
    else:
        frames = [Image.fromarray(noise.integers(0, 255, (72, 96), dtype=np.uint8)) for _ in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    result, output = optimize(path)
    assert result.exit_code == 0, result.output
    assert Image.open(output).size == (96, 72)
    assert ("first of 3 frames" in result.stderr) == (kind == "animated.gif")


# --- bad input ------------------------------------------------------------------------------------------------


def header_bomb(path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_IMAGES = {
    "missing.png": (lambda path: None, "no such file"),
    "folder.png": (Path.mkdir, "folder"),
    "empty.png": (lambda path: path.write_bytes(b""), "empty"),
    "text.png": (lambda path: path.write_text("hello, I am text"), "not an image"),
    "truncated.jpg": (truncated, "damaged"),
    "dot.png": (lambda path: Image.new("RGB", (1, 1)).save(path), "too small"),
    "bomb.png": (header_bomb, "megapixels"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("place", ["structure", "appearance"])
def test_bad_images_are_refused(optimize, tmp_path, images, name, place):
    make, word = BAD_IMAGES[name]
    make(tmp_path / name)
    result, output = optimize(**{place: tmp_path / name})
    assert_refused(result, output, name, word)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], ["steps", "0"]),
        (["--size", "7"], ["size", "7"]),
        (["--preset", "slow"], ["slow", "paper, fast"]),
        (["--generator", "huge"], ["huge", "published, refined"]),
        (["--backbone", "dino_vitb9"], ["dino_vitb9", "dino_vitb8", "vit_s14_robust"]),
        (["--weights", "nowhere.pth"], ["nowhere.pth", "no such"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--device", "abacus"], ["abacus"]),
        (["--precision", "fp8"], ["fp8"]),
    ],
)
def test_bad_settings_are_refused(optimize, images, options, words):
    result, output = optimize(images / "structure.png", images / "appearance.png", *options)
    assert_refused(result, output, *words)


def test_a_word_for_a_number_is_a_usage_error(optimize, images):
    result, output = optimize(images / "structure.png", images / "appearance.png", "--steps", "many")
    assert result.exit_code == 2 and not output.exists()


@pytest.mark.parametrize("damage", ["shape", "nan", "missing", "text"])
def test_bad_weights_are_refused(optimize, images, backbone_folder, tmp_path, damage):
    file, key = tmp_path / "bad.safetensors", "blocks.0.attn.qkv.weight"
    state = load_file(backbone_folder / "model.safetensors")
    if damage == "shape":
        state[key] = state[key][:-1].clone()
    elif damage == "nan":
        state[key][0, 0] = float("nan")
    elif damage == "missing":
        del state[key]
    save_file(state, file)
    if damage == "text":
        file.write_text("hello")
    result, output = optimize(images / "structure.png", images / "appearance.png", "--weights", file)
    assert_refused(result, output, "bad.safetensors", *([] if damage == "text" else [key]))


def test_places_that_take_no_file_are_refused_before_the_work(optimize, images, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "out.png", Path("/proc/out.png"), tmp_path / "out.xyz"):
        result, _ = optimize(output=output)
        assert result.exit_code == 2 and output.name in result.stderr and result.stderr.count("\n") == 1
        assert not output.exists()
    for option in ("--state", "--save-generator"):
        result, output = optimize(images / "structure.png", images / "appearance.png", option, tmp_path / "file" / "x")
        assert_refused(result, output, "cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_refused(optimize, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    result, output = optimize(output=folder / "out.png")
    assert_refused(result, output, "locked")


def test_debug_shows_the_traceback(optimize, tmp_path, images):
    result, _ = optimize(tmp_path / "missing.png", images / "appearance.png", "--debug")
    assert result.exit_code != 0 and type(result.exception).__name__ == "ImageError"


# --- longer lives ---------------------------------------------------------------------------------------------


def test_previews(optimize, images, tmp_path):
    result, output = optimize(
        images / "structure.png", images / "appearance.png", "--preview-every", "1", output=tmp_path / "p" / "o.png"
    )
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in output.parent.iterdir()) == ["o-step00001.png", "o-step00002.png", "o.png"]


def test_a_saved_generator_paints_other_images(optimize, images, tmp_path):
    file = tmp_path / "look.safetensors"
    result, output = optimize(images / "structure.png", images / "appearance.png", "--save-generator", file)
    assert result.exit_code == 0, result.output
    again = tmp_path / "again.png"
    result = CliRunner().invoke(app, ["apply", str(file), str(images / "structure.png"), "-o", str(again)])
    assert result.exit_code == 0, result.output
    assert torch.equal(load_image(again).rgb, load_image(output).rgb)
    result = CliRunner().invoke(app, ["apply", str(output), str(output), "-o", str(tmp_path / "x" / "no.png")])
    assert_refused(result, tmp_path / "x" / "no.png", "out.png")


def test_nan_leaves_the_last_good_image(optimize, images, monkeypatch):
    from splice_ff.errors import DivergedError
    from splice_ff.per_pair.optimizer import PairOptimizer

    step = PairOptimizer.step

    def failing(self):
        if self.step_count == 1:
            raise DivergedError("the losses are no longer finite at step 2")
        return step(self)

    monkeypatch.setattr(PairOptimizer, "step", failing)
    result, output = optimize()
    assert result.exit_code == 2 and "no longer finite at step 2" in result.stderr
    assert load_image(output).rgb.isfinite().all()


FAILURES = {
    "GPU memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "try --size 64"),
    "memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "try --size 64"),
    "a bug": (ZeroDivisionError("a bug"), "stopped by an error at step 2"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_whatever_ends_a_run_leaves_image_generator_and_state(optimize, images, monkeypatch, tmp_path, name):
    from splice_ff.per_pair.optimizer import PairOptimizer

    step, (error, says) = PairOptimizer.step, FAILURES[name]

    def failing(self):
        if self.step_count == 1:
            raise error
        return step(self)

    arguments = images / "structure.png", images / "appearance.png", "--state", tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        patch.setattr(PairOptimizer, "step", failing)
        result, output = optimize(*arguments, "--save-generator", tmp_path / "g.safetensors")
    assert result.exit_code and says in result.stderr and f"the best image so far is in {output}" in result.stderr
    assert load_image(output).size == (72, 96) and (tmp_path / "g.safetensors").exists()
    result, output = optimize(*arguments, "--steps", "3")
    assert result.exit_code == 0 and "going on from step 1" in result.stderr, result.stderr
    assert Image.open(output).text["step"] == "3"


def test_no_memory_to_begin_with_is_one_line(optimize, images, monkeypatch):
    from splice_ff.per_pair.optimizer import PairOptimizer

    def failing(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(PairOptimizer, "_encode", failing)
    assert_refused(*optimize(), "out of memory", "--size")


def test_a_state_goes_on_with_more_steps_but_not_with_fewer(optimize, images, tmp_path):
    arguments = images / "structure.png", images / "appearance.png", "--state", tmp_path / "run.pt"
    assert optimize(*arguments)[0].exit_code == 0
    result, output = optimize(*arguments, "--steps", "4")
    assert result.exit_code == 0 and "going on from step 2" in result.stderr
    assert Image.open(output).text["steps"] == "4"
    output.unlink()
    assert_refused(*optimize(*arguments, "--steps", "3"), "has taken 4 steps already")


@pytest.mark.parametrize("device", ["mps", "cuda:99", "tpu", "cpu:x", "xpu"])
def test_devices_that_are_not_there_are_one_short_line(optimize, images, device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    result, output = optimize(images / "structure.png", images / "appearance.png", "--device", device)
    assert_refused(result, output, device, "cpu")
    assert len(result.stderr) < 200


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
def test_names_that_are_no_text_are_no_reason_to_lose_an_image(optimize, images, tmp_path):
    source = tmp_path / os.fsdecode(b"bad\xff.png")
    source.write_bytes((images / "structure.png").read_bytes())
    result, output = optimize(source, images / "appearance.png", output=tmp_path / os.fsdecode(b"made\xff.png"))
    assert result.exit_code == 0 and load_image(output).size == (72, 96)


def test_ctrl_c_writes_the_best_so_far_and_the_run_can_go_on(optimize, images, backbone_folder, tmp_path):
    output, state = tmp_path / "out.png", tmp_path / "run.pt"
    command = [
        sys.executable, "-c", "from splice_ff.cli import main; main()",
        "optimize", images / "structure.png", images / "appearance.png", "-o", output,
        "--backbone", backbone_folder,
        "--size", "64", "--steps", "100000", "--preset", "paper", "--state", state, "--preview-every", "5",
    ]  # fmt: skip
    process = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out-step00005.png").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "interrupted" in errors
    assert Image.open(output).size == (96, 72)
    steps = torch.load(state, weights_only=True)["step_count"]
    assert steps >= 5
    options = ["--preset", "paper", "--steps", "100000", "--state", state]
    result, _ = optimize(images / "appearance.png", images / "appearance.png", *options)
    assert result.exit_code == 2 and "another run" in result.stderr


def test_state_goes_on(optimize, images, tmp_path):
    arguments = images / "structure.png", images / "appearance.png", "--state", tmp_path / "run.pt"
    first, output = optimize(*arguments)
    before = load_image(output).rgb
    second, output = optimize(*arguments)
    assert first.exit_code == second.exit_code == 0
    assert "going on from step 2" in second.stderr
    assert torch.equal(load_image(output).rgb, before)


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["apply", "--help"], ["doctor", "--help"]])
def test_help(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "Usage" in result.stdout


def test_doctor(monkeypatch):
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("torch", "GFLOP/s", "vit_s14_robust", "dino_vitb8", "webp"):
        assert word in result.stdout
