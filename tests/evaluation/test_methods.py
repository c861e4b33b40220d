"""Methods by name, and what they paint."""

from types import SimpleNamespace

import pytest
import torch
from support.evaluation import smooth_image

from splice_ff.errors import InputError
from splice_ff.evaluation import methods
from splice_ff.evaluation.methods import Color, Folder, parse_method
from splice_ff.networks.skip_unet import SkipUNet
from splice_ff.utils.color import rgb_to_lab
from splice_ff.vit.weights import load_backbone


def test_color_has_the_appearance_images_statistics():
    structure, appearance = smooth_image(0) * 0.4 + 0.3, smooth_image(1) * 0.4 + 0.3
    means = [rgb_to_lab(x).mean((-2, -1)) for x in (Color()("", structure, appearance).image, appearance)]
    assert (means[0] - means[1]).abs().max() < 0.5


def test_one_shot_and_refine():
    backbone = load_backbone("vit_s14_robust")
    structure, appearance = smooth_image(0), smooth_image(1, 80, 72)
    method = parse_method("one-shot", backbone, "everyday")
    assert method.model.backbone is backbone  # not loaded once more
    assert method.settings == {"model": "everyday", **method.model.identity}
    assert method.settings["model_sha256"] == method.model.fingerprint
    assert method.settings["unet.keeps_fine_colors"] == "True"  # what no weight holds
    painted = method("", structure, appearance)
    assert (painted.image - method.model.paint(structure, method.model.embed(appearance))).abs().max() == 0
    assert painted.identity().shape == appearance.shape
    refined = parse_method("one-shot+refine:1", backbone, "everyday")
    assert refined.name == "one-shot+refine:1"
    painted = refined("", structure, appearance)
    assert painted.image.shape == structure.shape and painted.identity().shape == appearance.shape


def test_one_shot_at_a_size():
    backbone = load_backbone("vit_s14_robust")
    structure, appearance = smooth_image(0), smooth_image(1, 80, 72)
    default, smaller, refined = (
        parse_method(f"one-shot{text}", backbone, "everyday") for text in ("", "@96", "@96+refine:1")
    )
    assert [smaller.name, refined.name] == ["one-shot@96", "one-shot@96+refine:1"]
    image = smaller("", structure, appearance).image
    assert torch.equal(image, smaller.model.paint(structure, smaller.model.embed(appearance), size=96))
    assert not torch.equal(image, default("", structure, appearance).image)
    assert refined("", structure, appearance).identity().shape == appearance.shape


def test_a_model_of_another_backbone_brings_its_own(tiny_backbone):
    method = parse_method("one-shot", tiny_backbone(), "everyday")
    assert method.model.backbone.name == "vit_s14_robust"


def test_optimize_hands_on_preset_steps_and_backbone(monkeypatch, tiny_backbone):
    asked = {}

    def optimize_pair(structure, appearance, **options):
        asked.update(options)
        return SimpleNamespace(image=structure, generator=SkipUNet("published").eval())

    monkeypatch.setattr(methods, "optimize_pair", optimize_pair)
    backbone = tiny_backbone()
    painted = parse_method("optimize-fast:20", backbone, "everyday")("", smooth_image(0), smooth_image(1, 64, 96))
    assert asked == {"preset": "fast", "steps": 20, "backbone": backbone, "device": "cpu", "output_type": "pt"}
    assert painted.identity().shape == (1, 3, 64, 96)
    method = parse_method("optimize-paper", backbone, "everyday")
    method("", smooth_image(0), smooth_image(1))
    assert method.name == "optimize-paper" and asked["preset"] == "paper" and asked["steps"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpy", "unknown method 'cpy'"),
        ("optimize-fast:0", "unknown method"),
        ("optimize-fast:-3", "unknown method"),
        ("one-shot+refine", r"unknown method.*\+refine:STEPS"),
        ("copy:3", "unknown method"),
        ("copy@64", "unknown method"),
        ("one-shot@0", "unknown method"),
        ("one-shot@8", "size must be at least"),
        ("one-shot@32+refine:1", "size must be at least 64"),
        ("one-shot+refine:0", "unknown method"),
    ],
)
def test_methods_that_cannot_be(text, message, tiny_backbone):
    with pytest.raises(InputError, match=message):
        parse_method(text, tiny_backbone(), "everyday")


def test_results_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such folder of results"):
        Folder("x", tmp_path / "none")
