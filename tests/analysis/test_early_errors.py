"""What the analysis commands refuse before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.checkpoint_files import CONFIG

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
from typer.testing import CliRunner
from splice_ff.cli import app
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    print(json.dumps([result.exit_code, result.stderr, "torch" in sys.modules]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "a.png")
    (folder / "text.png").write_text("no image")
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (folder / "page.safetensors").write_text("<!doctype html><title>404</title>")
    (folder / "empty.safetensors").touch()
    (folder / "no-backbone").mkdir()
    (folder / "deep").mkdir()
    (folder / "deep" / "config.json").write_text(json.dumps(CONFIG | {"depth": 10**9}))
    return folder


def test_wrong_arguments_and_files_are_refused_without_torch(folder):
    image, out, made = str(folder / "a.png"), "-o", str(folder / "made.png")
    of_backbone = {
        "pointer.pth": ["--weights", str(folder / "pointer.pth")],
        "page.safetensors": ["--weights", str(folder / "page.safetensors")],
        "empty.safetensors": ["--weights", str(folder / "empty.safetensors")],
        "absent.pth": ["--weights", str(folder / "absent.pth")],
        "no-backbone": ["--backbone", str(folder / "no-backbone")],
        "nowhere": ["--backbone", str(folder / "nowhere")],
        "depth": ["--backbone", str(folder / "deep")],
    }
    cases = {
        "absent.png": ["attention", str(folder / "absent.png"), out, made],
        "text.png": ["match", image, str(folder / "text.png"), out, made],
        ".xyz": ["explain", image, image, image, out, "made.xyz"],
        "unknown facet 'colors'": ["pca", image, "--facets", "keys,colors", out, made],
        "layers 'deep'": ["pca", image, "--layers", "deep", out, made],
        "unknown feature 'values'": ["invert", image, "--feature", "values", out, made],
        "unknown prior 'gan'": ["invert", image, "--prior", "gan", out, made],
        "steps must be": ["invert", image, "--steps", "0", out, made],
        "no-folder": ["invert", image, "--state", image + "/no-folder/run.pt", out, made],
    }
    cases |= {f"{word} ": ["attention", image, out, made, *more] for word, more in of_backbone.items()}
    cases |= {f"{word}  ": ["invert", image, out, str(folder), *more] for word, more in of_backbone.items()}
    process = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(list(cases.values())), capture_output=True, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    for (word, arguments), (code, message, has_torch) in zip(cases.items(), answers, strict=True):
        assert code == 2 and word.strip() in message and message.count("\n") == 1, (arguments, message)
        assert not has_torch, arguments
