"""`pca`, `invert`, `attention`, `match` and `explain`, end to end on a tiny backbone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from splice_ff.analysis.recipes import PCA_FACETS
from splice_ff.cli import app
from splice_ff.vit.spec import VIT_SIZE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images a.png (96 x 72) and b.png (60 x 80), and `tiny`, a checkpoint folder of a random ViT."""
    folder = tmp_path_factory.mktemp("features")
    dice = np.random.default_rng(0)
    for name, size in (("a", (96, 72)), ("b", (60, 80))):
        pixels = dice.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    shape = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    config = {"architecture": "timm.models.VisionTransformer", **shape, "mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(VisionTransformer(**shape).state_dict(), folder / "tiny" / "model.safetensors")
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """`run(command, *arguments)`: images a, b by those names; (result, where -o points to)."""

    def call(command, *arguments, output="made/out.png", backbone="tiny", size=64):
        paths = [folder / f"{x}.png" if x in ("a", "b") else x for x in arguments]
        sizes = ["--size", size] if size else []
        call = [command, "-o", tmp_path / output, "--backbone", folder / backbone, "--device", "cpu", *sizes, *paths]
        return CliRunner().invoke(app, [str(x) for x in call]), tmp_path / output

    return call


def size_of(path):
    with Image.open(path) as image:
        return image.size


def text_of(path):
    with Image.open(path) as image:
        return image.text


def test_pca_writes_a_grid_and_images_of_the_inputs_sizes(run):
    result, made = run("pca", "a", "b", "--joint", "--mask", "--facets", "keys,self_similarity", output="seen")
    assert result.exit_code == 0, result.output
    names = sorted(path.relative_to(made).as_posix() for path in made.rglob("*.png"))
    singles = [n for n in names if n != "grid.png"]
    assert len(singles) == 2 * 2 * 2 and names.count("grid.png") == 1  # images, facets, layers of the two-layer ViT
    assert {size_of(made / n) for n in singles if n.startswith("a/")} == {(96, 72)}
    assert {size_of(made / n) for n in singles if n.startswith("b/")} == {(60, 80)}
    assert text_of(made / singles[0])["facet"] == "keys"


def test_help_tells_the_defaults():
    text = " ".join(CliRunner().invoke(app, ["pca", "--help"]).stdout.replace("│", " ").split())
    assert f"default: {VIT_SIZE}" in text and ", ".join(PCA_FACETS) in text


def test_pca_shows_several_backbones_side_by_side(run, folder):
    one, made = run("pca", "a", "--facets", "keys", "--layers", "0", output="one")
    two, both = run("pca", "a", "--facets", "keys", "--layers", "0", "--backbone", "vit_mini", output="two")
    assert one.exit_code == two.exit_code == 0, two.output
    assert size_of(both / "grid.png")[0] > 1.3 * size_of(made / "grid.png")[0]
    assert (both / "a" / "vit_mini-keys-layer00.png").exists()


def test_images_of_one_name_do_not_overwrite_each_other(run, folder, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.png").write_bytes((folder / "b.png").read_bytes())
    result, made = run("pca", "a", tmp_path / "more" / "a.png", "--facets", "keys", "--layers=-1", output="seen")
    assert result.exit_code == 0, result.output
    assert [size_of(next((made / name).iterdir())) for name in ("a", "a-2")] == [(96, 72), (60, 80)]


def test_invert_writes_images_previews_and_a_grid_and_goes_on(run, tmp_path):
    state = tmp_path / "run.pt"
    options = ["a", "--feature", "cls", "--layers", "0,-1", "--seeds", "2", "--steps", "3", "--state", state]
    result, made = run("invert", *options, "--preview-every", "2", output="made")
    assert result.exit_code == 0, result.output
    singles = {f"cls-layer{layer:02d}-seed{seed}.png" for layer in (0, 1) for seed in (0, 1)}
    assert {path.name for path in made.iterdir()} == singles | {"grid.png", "grid-step00002.png"}
    text = text_of(made / "cls-layer01-seed1.png")
    assert text["step"] == "3" and float(text["distance"]) > 0 and text["prior"] == "cnn"
    again, _ = run("invert", *options, output="made")
    assert again.exit_code == 0 and "going on from step 3" in again.stderr
    other, _ = run("invert", *options, "--seed", "7", output="made")
    assert other.exit_code == 2 and "another run" in other.stderr


def test_ctrl_c_writes_what_is_there(run, tmp_path, monkeypatch):
    from splice_ff.analysis.inversion import FeatureInversion

    step = FeatureInversion.step

    def interrupted(self):
        if self.step_count == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(FeatureInversion, "step", interrupted)
    result, made = run("invert", "a", "--steps", "50", "--state", tmp_path / "run.pt", output="made")
    assert result.exit_code == 130 and "interrupted at step 2" in result.stderr
    assert {path.name for path in made.iterdir()} == {"keys-layer01-seed0.png", "grid.png"}
    assert text_of(made / "keys-layer01-seed0.png")["step"] == "2"
    assert (tmp_path / "run.pt").exists()


@pytest.mark.parametrize(("command", "arguments"), [("attention", ["a"]), ("match", ["a", "b"])])
def test_attention_and_match_draw_an_image(run, command, arguments):
    result, made = run(command, *arguments, "--layer", "0")
    assert result.exit_code == 0, result.output
    assert min(size_of(made)) > 100 and text_of(made)["layer"] == "0"


def test_match_says_its_verdict(run):
    result, made = run("match", "a", "b", "--layer", "0")
    [line] = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert line == f"{made}: {text_of(made)['verdict']}" and line.count("similarity") == 1


def test_explain_gives_a_verdict(run):
    result, made = run("explain", "a", "b", "a", size=None)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("these two share ")
    assert text_of(made)["verdict"] == result.stdout.strip()
    assert float(text_of(made)["loss_structure"]) < 1e-6  # the output is the structure itself


def test_quiet_is_quiet(run):
    for command, arguments, output in (
        ("pca", ["a", "--facets", "keys", "--layers", "0"], "x"),
        ("invert", ["a", "--steps", "1"], "y"),
        ("match", ["a", "b"], "z.png"),
    ):
        result, _ = run(command, *arguments, "--quiet", output=output)
        assert result.exit_code == 0 and result.output == ""


@pytest.mark.parametrize(
    ("command", "arguments", "word"),
    [
        ("pca", ["missing.png"], "missing.png"),
        ("pca", ["a", "--facets", "keys,noses"], "noses"),
        ("pca", ["a", "--layers", "2"], "layer 2"),
        ("pca", ["a", "--layers", "one"], "'one'"),
        ("pca", ["a", "--backbone", "vit_mini", "--weights", "x.pth"], "--weights"),
        ("invert", ["missing.png"], "missing.png"),
        ("invert", ["a", "--feature", "noses"], "noses"),
        ("invert", ["a", "--prior", "gan"], "gan"),
        ("invert", ["a", "--steps", "0"], "steps"),
        ("invert", ["a", "--layers", "9"], "layer 9"),
        ("attention", ["a", "--layer", "5"], "layer 5"),
        ("match", ["a", "missing.png"], "missing.png"),
        ("match", ["a", "b", "--device", "gpu"], "'gpu'"),
        ("explain", ["a", "b", "b"], "proportions"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, command, arguments, word):
    is_folder = command in ("pca", "invert")
    output = "made" if is_folder else "made/out.png"
    result, _ = run(command, *arguments, output=output, size=None if command == "explain" else 64)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0]
    assert not list((tmp_path / "made").rglob("*")) if (tmp_path / "made").exists() else True


def test_an_unwritable_place_is_found_before_the_work(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("splice_ff.images.load_image", lambda *_: pytest.fail("worked first"))
    for command, arguments, output in (
        ("pca", ["a"], "file"),
        ("invert", ["a"], "file"),
        ("match", ["a", "b"], "x.xyz"),
        ("attention", ["a"], "file/x.png"),
    ):
        result, _ = run(command, *arguments, output=output)
        assert result.exit_code == 2 and "error: " in result.stderr
