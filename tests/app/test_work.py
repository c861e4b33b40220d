"""What the page does for a visitor, without the page."""

import os
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.one_shot_model import make_model, random_image
from support.tiny_vit import make_vit

from splice_ff.app import work
from splice_ff.app.work import Work
from splice_ff.errors import InputError
from splice_ff.images import load_image, save_image
from splice_ff.vit.features import ViTFeatures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    files = []
    for i, size in enumerate([(80, 96), (72, 64), (64, 64)]):
        files.append(str(save_image(folder / f"{i}.png", random_image(i, *size))))
    return Work(make_model(ViTFeatures(make_vit())), folder), files


def test_painting_follows_strength_and_mix_and_keeps_settings(made):
    page, (structure, appearance, second) = made
    plain = page.paint(structure, appearance, None, 0.5, 1.0, 64)
    assert "Painted in" in plain.message
    with Image.open(plain.file) as image:
        assert image.size == (96, 80) and image.text["size"] == "64" and image.text["weights"] == "1"
    own, mixed, first = (
        load_image(page.paint(structure, appearance, other, mix, strength, 64).file).rgb
        for other, mix, strength in ((None, 0, 0.0), (second, 0.5, 1.0), (second, 0.0, 1.0))
    )
    output = load_image(plain.file).rgb
    assert torch.equal(first, output)  # a share of 0 is no mix
    assert not torch.equal(mixed, output) and not torch.equal(own, output)


def test_each_answer_has_a_file_of_its_own(made):
    page, (structure, appearance, _) = made
    answers = [page.paint(structure, appearance, None, 0, 1.0, 64).file for _ in range(2)]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("method", ["refine", "optimize"])
def test_runs_show_how_the_image_improves(made, method, monkeypatch):
    monkeypatch.setattr(work, "SHOW_EVERY", 2)
    page, (structure, appearance, _) = made
    shown = list(getattr(page, method)(structure, appearance, 4, 64, 0))
    assert [s.message.split(",")[0] for s in shown[:2]] == ["Step 2 of 4.", "Step 4 of 4."]
    assert "Best image: step" in shown[-1].message and load_image(shown[-1].file).size == (80, 96)
    with Image.open(shown[-1].file) as image:
        assert image.text["size"] == {"refine": "90", "optimize": "64"}[method]


def test_a_run_ends_in_time_with_the_best_image(made, monkeypatch):
    monkeypatch.setattr(work, "SHOW_EVERY", 1)
    monkeypatch.setattr(work, "MAX_SECONDS", 0.0)
    page, (structure, appearance, _) = made
    shown = list(page.refine(structure, appearance, 50, 64, 0))
    assert len(shown) == 2 and "Stopped after 0 s" in shown[-1].message


def test_results_are_deleted_in_time(made):
    page, (structure, appearance, _) = made
    old, new = (Path(page.paint(structure, appearance, None, 0.5, 1.0, 64).file) for _ in range(2))
    os.utime(old.parent, (0, time.time() - work.KEPT - 60))
    page.delete_old_images()
    assert not old.parent.exists() and new.exists() and Path(structure).exists()


def test_explaining(made):
    page, (structure, appearance, _) = made
    matches, components, verdict = page.explain(structure, appearance)
    assert verdict and min(load_image(matches).size) > 100 and min(load_image(components).size) > 100


def test_uploads_are_bounded_and_read_by_the_library(made, tmp_path, monkeypatch):
    page, (structure, appearance, _) = made
    (tmp_path / "fake.png").write_text("no image")
    for file, reason in ((None, "give the structure image first"), (str(tmp_path / "fake.png"), "not an image")):
        with pytest.raises(InputError, match=reason) as caught:
            page.paint(file, appearance, None, 0, 1.0, 64)
        assert str(tmp_path) not in str(caught.value)  # paths of the server are nobody's business
    monkeypatch.setattr(work, "MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="megapixels"):
        page.paint(structure, appearance, None, 0, 1.0, 64)
