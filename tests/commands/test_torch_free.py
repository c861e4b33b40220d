"""What can be known before torch is there is said before: a wrong argument is answered in well under a second."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

PROGRAM = """
import sys
from splice_ff.cli import main
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise SystemExit(f"{name} was imported")
sys.meta_path.insert(0, Refused())
main()
"""


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise).resize((300, 20)).save(tmp_path / "narrow.png")
    Image.fromarray(noise).resize((20_000, 70)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    return tmp_path


OPTIMIZE = [
    ("none.png a.png", "none.png: no such file"),
    ("a.png none.png", "none.png: no such file"),
    ("text.png a.png", "text.png: not an image"),
    ("a.png empty.png", "empty.png: the file is empty"),
    ("a.png .", "is a folder"),
    ("a.png a.png -o .", ".: is a folder"),
    ("a.png a.png -o out.xyz", "unknown image format '.xyz'"),
    ("a.png a.png -o out", "out: names no format"),
    ("a.png a.png -o a.png/out.png", "cannot be written"),
    ("wide.png a.png -o out.webp", "out.webp: 20000x70 pixels are more than this format holds"),
    ("wide.png a.png --size 2000", "more than 64 megapixels"),
    ("narrow.png a.png --preset paper", "narrow.png: 300x20 pixels are too few"),
    ("a.png a.png --preset slow", "unknown preset 'slow'"),
    ("a.png a.png --steps 0", "steps must be from 1"),
    ("a.png a.png --steps 99999999999999999999", "steps must be from 1"),
    ("a.png a.png --size 3", "size must be at least 64"),
    ("a.png a.png --size 999999999", "more than 64 megapixels"),
    ("a.png a.png --generator best", "unknown generator 'best'"),
    ("a.png a.png --precision fp8", "unknown precision 'fp8'"),
    ("a.png a.png --seed -1", "--seed"),
    ("a.png a.png --seed 99999999999999999999", "--seed"),
    ("a.png a.png --state .", "cannot be written"),
    ("a.png a.png --save-generator a.png/x", "cannot be written"),
    ("-a.png a.png", "./-NAME"),
]
APPLY = [
    ("none.safetensors a.png", "none.safetensors: no such file"),
    ("a.png none.png", "none.png: no such file"),
    ("a.png a.png -o .", "is a folder"),
]


@pytest.mark.parametrize(
    ("words", "says"),
    [(f"optimize {words}", says) for words, says in OPTIMIZE] + [(f"apply {words}", says) for words, says in APPLY],
)
def test_errors_about_arguments_and_files_need_no_torch(folder, words, says):
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2 and says in said, done.stderr
    assert "Traceback" not in done.stderr
