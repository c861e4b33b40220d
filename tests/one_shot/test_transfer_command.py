"""`transfer`, `embed` and `batch`, end to end on a random model: images, or one line, exit 2 and nothing written."""

import pytest
import torch
from PIL import Image
from support.painted import assert_refused, assert_same
from typer.testing import CliRunner

from splice_ff.cli import app
from splice_ff.images import load_image
from splice_ff.one_shot.pipeline import SpliceFF


def test_transfer(run, place, model, tmp_path):
    output = tmp_path / "made" / "out.png"
    result = run("transfer", "a", "b", "-o", output)
    assert result.exit_code == 0, result.output
    a, b = (load_image(place / name).rgb for name in ("a.png", "b.png"))
    assert_same(output, model(a, b, output_type="pt"))
    with Image.open(output) as image:
        assert image.size == (96, 72)
        text = image.text
    assert text["structure"] == "a.png" and text["appearance"] == "b.png"
    assert text["model_sha256"] == model.fingerprint and text["size"] == "64" and text["strength"] == "1"


def test_several_looks_strength_and_size(run, place, model, tmp_path):
    output = tmp_path / "out.png"
    options = ["--weight", "3", "--weight", "1", "--strength", "0.5", "--size", "48"]
    result = run("transfer", "a", "b", "c", "-o", output, *options)
    assert result.exit_code == 0, result.output
    a, b, c = (load_image(place / f"{name}.png").rgb for name in "abc")
    assert_same(output, model.paint(a, model.mix([model.embed(b), model.embed(c)], [3, 1]), size=48, strength=0.5))
    assert Image.open(output).text["weights"] == "3, 1"


def test_a_kept_look_paints_the_same(run, tmp_path):
    look, first, second = tmp_path / "look.safetensors", tmp_path / "1.png", tmp_path / "2.png"
    assert run("embed", "b", "-o", look).exit_code == 0
    assert run("transfer", "a", "b", "-o", first).exit_code == 0
    result = run("transfer", "a", "--look", look, "-o", second)
    assert result.exit_code == 0, result.output
    assert torch.equal(load_image(first).rgb, load_image(second).rgb)
    assert Image.open(second).text["appearance"] == "b.png"


def test_refine(run, tmp_path):
    output = tmp_path / "out.png"
    result = run("transfer", "a", "b", "-o", output, "--refine", "2")
    assert result.exit_code == 0, result.output
    assert "the best of 2 steps is step" in result.stderr
    text = Image.open(output).text
    assert text["refine"] == "2" and text["size"] == "90" and float(text["loss_total"]) > 0
    assert "structure" in result.output and "identity" not in result.output  # refining does not take that loss
    assert "loss_structure" in text and "loss_identity" not in text


def test_refine_that_diverges_leaves_the_best_image(run, tmp_path, monkeypatch):
    from splice_ff.errors import DivergedError
    from splice_ff.per_pair.optimizer import PairOptimizer

    def fail(self):
        raise DivergedError("the losses are no longer finite at step 1")

    monkeypatch.setattr(PairOptimizer, "step", fail)
    result = run("transfer", "a", "b", "-o", tmp_path / "out.png", "--refine", "2")
    assert result.exit_code == 2 and "no longer finite" in result.stderr
    assert load_image(tmp_path / "out.png").size == (72, 96)


def test_an_interrupted_refine_writes_the_best_image(run, tmp_path, monkeypatch):
    from splice_ff.per_pair.optimizer import PairOptimizer

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(PairOptimizer, "step", interrupt)
    result = run("transfer", "a", "b", "-o", tmp_path / "out.png", "--refine", "2")
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert load_image(tmp_path / "out.png").size == (72, 96)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], ["--look"]),
        (["a", "b", "--look", "some.safetensors"], ["not both"]),
        (["a", "b", "--weight", "1", "--weight", "1"], ["2 --weight for 1"]),
        (["a", "b", "--weight", "0"], ["weights"]),
        (["a", "b", "--strength", "1.5"], ["strength", "1.5"]),
        (["a", "b", "c", "--refine", "2"], ["--refine"]),
        (["a", "b", "--size", "8"], ["size", "8"]),
        (["a", "b", "--refine", "2", "--size", "32"], ["64"]),
        (["a", "missing.png"], ["missing.png", "no such file"]),
        (["a", "--look", "missing.safetensors"], ["missing.safetensors"]),
        (["a", "--look", "tiger.PNG"], ["tiger.PNG", "an image", "APPEARANCE"]),
        (["a", "b", "--model", "no-such-model"], ["no-such-model"]),
        (["a", "b", "--device", "warp"], ["warp"]),
    ],
)
def test_wrong_arguments_are_one_line(run, place, tmp_path, arguments, words):
    output = tmp_path / "out.png"
    if "--device" in arguments:  # given after the default of `run`, the last one counts
        arguments = [place / f"{a}.png" if a in ("a", "b") else a for a in arguments]
        line = ["transfer", *arguments, "-o", output, "--model", place / "model"]
        assert_refused(CliRunner().invoke(app, [str(a) for a in line]), output, *words)
    else:
        assert_refused(run("transfer", *arguments, "-o", output), output, *words)


def test_a_place_that_takes_no_image_is_found_first(run, tmp_path, monkeypatch):
    monkeypatch.setattr(SpliceFF, "from_pretrained", lambda *_, **__: pytest.fail("loaded a model first"))
    assert_refused(run("transfer", "a", "b", "-o", tmp_path / "out.txt"), tmp_path / "out.txt", "out.txt")
    (tmp_path / "file").write_text("")
    for command in (["transfer", "a", "b"], ["embed", "b"]):
        output = tmp_path / "file" / "out.png"
        assert run(*command, "-o", output).exit_code == 2


# --- batch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(run, place, model, tmp_path, precision):
    output = tmp_path / "out.png"
    assert run("transfer", "a", "b", "-o", output, "--precision", precision).exit_code == 0
    expected = model(load_image(place / "a.png").rgb, load_image(place / "b.png").rgb, output_type="pt")
    assert 0 < (load_image(output).rgb - expected).abs().mean() < 0.01
    assert Image.open(output).text["precision"] == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    result = run("batch", "a", "--look", "b", "-o", tmp_path / "painted", "--precision", precision)
    assert result.exit_code == 0, result.output
    assert (load_image(tmp_path / "painted" / "a.png").rgb - load_image(output).rgb).abs().max() < 0.02
