"""An output that is there is replaced, as by other tools; an input never is, whatever name it is given."""

import os

import pytest
from support.one_shot_model import random_image
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.images import save_image

COMMANDS = {
    "transfer": ["transfer", "a.png", "b.png"],
    "transfer, appearance": ["transfer", "b.png", "a.png"],
    "transfer, one of a mix": ["transfer", "b.png", "b.png", "a.png"],
    "optimize": ["optimize", "a.png", "b.png", "--backbone", "vit_mini", "--steps", "1"],
    "optimize, appearance": ["optimize", "b.png", "a.png", "--backbone", "vit_mini", "--steps", "1"],
    "optimize, generator": ["optimize", "a.png", "b.png", "-o", "c.png", "--steps", "1", "--save-generator"],
    "optimize, state": ["optimize", "a.png", "b.png", "-o", "c.png", "--steps", "1", "--state"],
    "apply": ["apply", "a.png", "b.png"],
    "apply, image": ["apply", "b.png", "a.png"],
    "embed": ["embed", "b.png", "a.png"],
    "attention": ["attention", "a.png", "--backbone", "vit_mini"],
    "match": ["match", "b.png", "a.png", "--backbone", "vit_mini"],
    "explain": ["explain", "b.png", "b.png", "a.png", "--backbone", "vit_mini"],
}


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_image(tmp_path / f"{name}.png", random_image(seed, 64, 64))
    os.symlink("a.png", tmp_path / "link.png")
    return tmp_path


@pytest.mark.parametrize("name", ["a.png", "./a.png", "link.png"])
@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_an_input_is_never_replaced(images, arguments, name):
    before = (images / "a.png").read_bytes()
    option = [] if arguments[-1] in ("--save-generator", "--state", "--json") else ["-o"]
    result = CliRunner().invoke(app, [*arguments, *option, name])
    assert result.exit_code == 2 and "the output would replace an input" in result.stderr, result.output
    assert (images / "a.png").read_bytes() == before and not (images / "c.png").exists()


@pytest.mark.parametrize("command", ["pca", "invert"])
def test_nor_is_one_in_the_folder(images, command):
    (images / "a.png").rename(images / "grid.png")
    result = CliRunner().invoke(app, [command, "grid.png", "--backbone", "vit_mini", "-o", "."])
    assert result.exit_code == 2 and "grid.png: the output would replace an input" in result.stderr


@pytest.mark.parametrize("data", ["photos.parquet", "*.parquet"])
def test_pairs_do_not_replace_their_data(images, data):
    (images / "photos.parquet").write_bytes(b"rows")
    result = CliRunner().invoke(app, ["pairs", data, "-o", "photos.parquet"])
    assert result.exit_code == 2 and "photos.parquet: the output would replace an input" in result.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("keys-layer11-seed0.png", ["invert", "{}", "--backbone", "vit_mini", "-o", "."]),
        ("grid-step00010.png", ["invert", "{}", "--backbone", "vit_mini", "-o", ".", "--preview-every", "10"]),
        ("out-step00010.png", ["optimize", "{}", "b.png", "-o", "out.png", "--preview-every", "10"]),
        ("out-step00010.png", ["optimize", "b.png", "{}", "-o", "out.png", "--preview-every", "10"]),
    ],
)
def test_nor_is_one_with_a_name_that_a_run_gives(images, name, arguments):
    (images / "a.png").rename(images / name)
    result = CliRunner().invoke(app, [argument.format(name) for argument in arguments])
    assert result.exit_code == 2 and f"{name}: the output would replace an input" in result.stderr, result.output


def test_a_home_folder_is_known_by_its_sign(images, monkeypatch):
    monkeypatch.setenv("HOME", str(images))
    result = CliRunner().invoke(app, ["match", "~/a.png", "b.png", "--backbone", "vit_mini", "-o", "a.png"])
    assert result.exit_code == 2 and "a.png: the output would replace an input" in result.stderr, result.output


def test_an_output_of_before_is_replaced(images):
    arguments = ["transfer", "a.png", "b.png", "--size", "64", "--device", "cpu"]
    outputs = []
    for strength in ("0", "1"):
        result = CliRunner().invoke(app, [*arguments, "--strength", strength])
        assert result.exit_code == 0 and result.stderr.splitlines()[-1].startswith("out.png: painted in"), result.output
        outputs.append((images / "out.png").read_bytes())
    assert outputs[0] != outputs[1]


def test_a_batch_does_not_go_into_the_folder_of_its_inputs(images):
    """They would count as finished images, and the next run would paint the last one's."""
    for output in (".", str(images)):
        result = CliRunner().invoke(app, ["batch", ".", "--look", "b.png", "-o", output])
        assert result.exit_code == 2 and "holds inputs" in result.stderr
    assert sorted(path.name for path in images.iterdir()) == ["a.png", "b.png", "link.png"]
