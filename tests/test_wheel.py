"""The wheel, installed away from the source tree: it has all that its commands need and name."""

import os
import re
import shutil
import subprocess
import sys
from email import message_from_string
from pathlib import Path

import pytest
from support.extras import OPTIONAL

pytest.importorskip("hatchling", reason="builds the wheel")
pytest.importorskip("hatch_fancy_pypi_readme", reason="builds the wheel")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder into which pip installed the wheel, built from what the Dockerfile copies."""
    folder = tmp_path_factory.mktemp("wheel")
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line.startswith("!"):
            source, target = ROOT / line[1:], folder / "source" / line[1:]
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(exist_ok=True)
                shutil.copy(source, target)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=folder / "source", check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", folder / "site", next(folder.glob("*.whl"))], check=True)
    return folder / "site"


def run(site, folder, *command):
    """Run a command in a folder with this installation before all others, and what it printed."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_demo_paints_with_nothing_but_what_a_plain_install_brings(site, tmp_path):
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        "import splice_ff.cli; print(splice_ff.__file__); splice_ff.cli.main()"
    )
    said = run(site, tmp_path, sys.executable, "-c", program, "demo", "--device", "cpu")
    assert said.startswith(str(site))
    assert {path.name for path in tmp_path.iterdir()} == {"cat.jpg", "raccoon.jpg", "cat-as-raccoon.png"}


def test_the_script_is_there(site, tmp_path):
    assert "splice-ff 0." in run(site, tmp_path, site / "bin" / "splice-ff", "--version")


def test_every_help_text_names_only_what_the_wheel_has(site, tmp_path):
    program = (
        "from typer.testing import CliRunner\nfrom splice_ff.cli import app\n"
        "for command in app.registered_commands:\n"
        "    name = command.name or command.callback.__name__\n"
        "    result = CliRunner().invoke(app, [name, '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.stdout, name\n"
        "    print(result.stdout)"
    )
    text = run(site, tmp_path, sys.executable, "-c", program)
    only_in_the_tree = re.findall(r"\b(?:train|eval|docs|tests|examples)(?:/[\w.-]+)+|-m eval\.\w+", text)
    assert not only_in_the_tree


def test_it_brings_models_configs_and_types(site):
    package = site / "splice_ff"
    for name in (
        "checkpoints/vit_mini/model.safetensors",
        "checkpoints/vit_s14_robust/model.safetensors",
        "checkpoints/everyday/model.safetensors",
        "py.typed",
    ):
        assert (package / name).is_file(), name
    ours = {path.relative_to(ROOT / "train/configs") for path in (ROOT / "train/configs").rglob("*.yaml")}
    assert ours == {path.relative_to(package / "configs") for path in (package / "configs").rglob("*.yaml")}


def test_images_and_links_of_the_description_are_absolute(site):
    metadata = message_from_string(next(site.glob("*.dist-info/METADATA")).read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert sum("raw.githubusercontent.com" in target for target in targets) >= 3
    assert not [target for target in targets if not target.startswith(("https://", "#"))]
