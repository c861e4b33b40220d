"""What README, docs and notebook tell people to type does run: every shell and Python block, at tiny settings.

Commands run in a folder with small images under the names that the pages use, one page after another in order, so that
a line may use what an earlier one wrote. `pip` and `make` are only checked against pyproject.toml and the Makefile.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import typer
import yaml
from PIL import Image
from support.extras import EXTRAS, PROJECT
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.images import save_image

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
NOTEBOOK = "examples/splice_ff.ipynb"
TINY_TRAINING = [
    "data.size=32", "data.workers=0", "loss.vit_size=32", "generator.size=tiny", "optimizer.steps=1",
    "optimizer.batch_size=2", "optimizer.warmup_steps=0", "run.validation_pairs=2", "run.validate_every=1",
    "run.sample_every=1", "run.precision=fp32", "run.compile=false", "run.trackers=[]", "backbone.name=vit_mini",
]  # fmt: skip
TINY = {
    "demo": ["--device", "cpu", "-o", "demo"],
    "transfer": ["--device", "cpu", "--size", "64"],
    "embed": ["--device", "cpu"],
    "batch": ["--device", "cpu", "--size", "64"],
    "optimize": ["--device", "cpu", "--size", "64", "--steps", "1", "--backbone", "vit_mini"],
    "apply": ["--device", "cpu"],
    "teach": ["--device", "cpu", "--size", "64", "--steps", "1", "--backbone", "vit_mini"],
    "pairs": ["--device", "cpu", "--size", "32", "--backbone", "vit_mini"],
    "pca": ["--device", "cpu", "--size", "64", "--layers", "-1"],
    "invert": ["--device", "cpu", "--size", "64", "--steps", "1"],
    "attention": ["--device", "cpu", "--size", "64"],
    "match": ["--device", "cpu", "--size", "64"],
    "explain": ["--device", "cpu"],
    "evaluate": ["--device", "cpu", "--backbone", "vit_mini", "--limit", "1"],
    "benchmark": ["--device", "cpu", "--backbone", "vit_mini", "--size", "64", "--repeats", "1"],
    "doctor": [],
    "train": TINY_TRAINING,
    "video": ["--device", "cpu", "--size", "32"],
}
"""What each command gets besides, so that it takes a second. The last one of an option counts."""
NOT_RUN = {"app", "export", *(() if find_spec("av") else ("video",))}
"""Tests of their own run them: export takes a minute. Video needs its extra."""
SHORTER = {
    "--refine 100": "--refine 1",
    "steps=200": "steps=1, size=64, backbone='vit_mini'",
    "steps=100": "steps=1, size=64",
    "refine=100": "refine=1, size=64",
    "dino_vitb8": "vit_mini",
    'InversionRecipe("cls")': 'InversionRecipe("cls", steps=1)',
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks():
    """Fenced blocks of all pages with a language that can be run."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for found in re.finditer(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def cells():
    """Code cells of the notebook."""
    for i, cell in enumerate(json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield Block(NOTEBOOK, i, "sh" if text.startswith(("!", "%")) else "python", text)


BLOCKS = [*blocks(), *cells()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: images, photos with labels, pairs; and the tree's own train/ and examples/."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("raccoon.jpg", "cat.jpg"):
        with Image.open(ROOT / "examples" / name) as image:
            image.resize((96, 72)).save(place / name)
    random = torch.Generator().manual_seed(0)
    for i in range(80):
        image = F.interpolate(torch.rand(1, 3, 4, 5, generator=random), (40, 48), mode="bicubic").clamp(0, 1)
        save_image(place / "photos" / "ab"[i % 2] / f"{i}.png", image)
    for name in ("first", "second"):
        (place / "pairs" / name).mkdir(parents=True)
        shutil.copy(place / "raccoon.jpg", place / "pairs" / name / "structure.jpg")
        shutil.copy(place / "cat.jpg", place / "pairs" / name / "appearance.jpg")
    if find_spec("av"):
        from support.video_files import panned, write_video

        write_video(place / "clip.mp4", panned(count=2))
    for name in ("train", "examples"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.fixture(scope="module")
def names():
    """Python names of the pages so far: a block may use what an earlier one of its page defined."""
    return {}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_block_runs(block, folder, names, monkeypatch):
    monkeypatch.chdir(folder)
    text = block.text
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    if block.language == "python":
        if "splice_ff.video" in text:
            pytest.importorskip("av", reason="needs the extra video")
        exec(compile(text, block.page, "exec"), names.setdefault(block.page, {"__name__": "reader"}))
        return
    if block.page == NOTEBOOK:  # its shell lines may hold Python names
        text = text.lstrip("!%").format(**names.get(block.page, {}))
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            run_line(words)


def run_line(words):
    """Run one shell command, or check what cannot be run in a test."""
    match words:
        case ["splice-ff", command, *rest] if command in NOT_RUN or "onnx" in rest:
            COMMANDS[command].make_context(command, rest)
        case ["splice-ff", command, *rest]:
            run_command(command, rest)
        case ["accelerate", "launch", *rest]:
            run_launched(rest)
        case ["pip", "install", *rest]:
            check_pip(rest)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        case ["tensorboard", "--logdir", _]:
            assert any(name.startswith("tensorboard") for name in EXTRAS["train"])
        case _:
            pytest.fail(f"no rule for: {shlex.join(words)}")


def run_command(command, rest):
    result = CliRunner().invoke(app, [command, *rest, *TINY[command]], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def run_launched(words):
    """What `accelerate launch` would start, in this process: its own options are parsed, and its config is read."""
    from accelerate.commands.launch import launch_command_parser

    known = launch_command_parser().parse_args(words)
    assert known.config_file is None or yaml.safe_load(Path(known.config_file).read_text(encoding="utf-8"))
    assert known.module and known.training_script == "splice_ff"
    run_line(["splice-ff", *known.training_script_args])


def check_pip(words):
    for word in words:
        if word.endswith(".whl"):
            assert word == f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}-py3-none-any.whl"
        elif named := re.fullmatch(r"(?:\.|splice-ff)\[([\w,-]+)\](?: @ .*)?", word):
            assert {*named[1].split(",")} <= EXTRAS.keys()


def test_pages_show_files_that_exist():
    missing = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http") and not (ROOT / page).parent.joinpath(target).exists():
                missing.append(f"{page}: {target}")
    assert not missing


def test_files_named_in_prose_exist():
    """A path in backquotes in the pages that contributors read is one of this tree."""
    missing = []
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8").replace("NAME.py", "transfer.py")
        named = re.findall(r"`((?:splice_ff|tests|docs|train|eval|examples)/[\w./-]+)", text)
        missing += [f"{page}: {name}" for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_map_names_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = re.search(r"^```\nsplice_ff/\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    package = ROOT / "splice_ff"
    for name in re.findall(r"\w+\.py\b", drawn):
        assert list(package.rglob(name)), name
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= {*re.findall(r"(\w+)/", drawn)}
