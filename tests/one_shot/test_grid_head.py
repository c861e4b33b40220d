"""Models whose color maps lie in a bilateral grid: files, sizes, precisions, refining and lists, as any model."""

import json

import pytest
import torch
from support.one_shot_model import make_model, random_image

from splice_ff.data.pair_list import PairFiles
from splice_ff.errors import CheckpointError
from splice_ff.images import load_image, save_image
from splice_ff.one_shot.batch import paint_pairs
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.one_shot.refine import refiner, refining_size


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Not timed: that takes seconds where bfloat16 is emulated."""
    monkeypatch.setattr("splice_ff.per_pair.optimizer.fastest_dtype", lambda device: torch.float32)


@pytest.fixture
def model(tiny_backbone):
    return make_model(tiny_backbone(patch_size=16), generator="tiny-grid")


def test_it_is_saved_with_its_grid_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["generator"]["unet"]["bins"] == 8
    assert "size `tiny-grid`" in (tmp_path / "model" / "README.md").read_text()
    again = SpliceFF.from_pretrained(tmp_path / "model", backbone=model.backbone)
    structure, tokens = random_image(1, 90, 131), model.embed(random_image(2))
    assert torch.equal(again.paint(structure, tokens), model.paint(structure, tokens))
    assert again.fingerprint == model.fingerprint


def test_another_number_of_bins_than_the_files_is_an_error(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["generator"]["unet"]["bins"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"color_affine.*\(96, 128, 1, 1\), config.json calls for \(48,"):
        SpliceFF.from_pretrained(tmp_path, backbone=model.backbone)


def test_configs_from_before_the_grid_have_one_bin_and_whole_cells(tiny_backbone, tmp_path):
    model = make_model(tiny_backbone())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["generator"]["unet"]["bins"], config["generator"]["unet"]["parts"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = SpliceFF.from_pretrained(tmp_path, backbone=model.backbone)
    assert again.generator.unet.guide is None and again.generator.unet.parts == 1
    assert torch.equal(
        again(random_image(1), random_image(2), output_type="pt"),
        model(random_image(1), random_image(2), output_type="pt"),
    )


@pytest.mark.parametrize("size", [(150, 201), (64, 64), (40, 50)])
def test_images_of_any_size_are_painted_at_their_own(model, size):
    structure, tokens = random_image(1, *size), model.embed(random_image(2))
    output = model.paint(structure, tokens)
    assert output.shape == structure.shape and output.min() >= 0 and output.max() <= 1
    assert (output - structure).abs().mean() > 0.02
    batch = model.paint(structure.repeat(2, 1, 1, 1), tokens)
    torch.testing.assert_close(batch[1:], output, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("tiny-grid", (150, 201)),
        *((kind, size) for kind in ("tiny", "tiny-grid") for size in ((64, 64), (40, 50), (50, 40))),
    ],
)
def test_no_change_leaves_the_image_as_it_is_also_a_small_one(tiny_backbone, kind, size):
    model = make_model(tiny_backbone(patch_size=16), generator=kind)
    structure, tokens = random_image(1, *size), model.embed(random_image(2))
    structure = (structure + 0.2 * torch.rand(structure.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    torch.testing.assert_close(model.paint(structure, tokens, strength=0), structure, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_paints_nearly_the_same(model, dtype):
    structure, appearance = random_image(1, 130, 97), random_image(2)
    expected = model(structure, appearance, output_type="pt")
    assert (model.to(dtype)(structure, appearance, output_type="pt") - expected).abs().mean() < 0.03


def test_refining_starts_from_the_one_shot_image_at_full_size_and_goes_downhill(model):
    structure, appearance = random_image(1, 150, 120), random_image(2, 90, 70)
    start = refiner(model, structure, appearance, steps=5)
    painted = model(structure, appearance, size=refining_size(model), output_type="pt")
    torch.testing.assert_close(start.preview(), painted, atol=1e-5, rtol=0)
    first = start.result()
    torch.testing.assert_close(first.image, painted, atol=1e-5, rtol=0)
    run = refiner(model, structure, appearance, steps=15)
    run.run()
    refined = run.result()
    assert refined.image.shape == structure.shape
    assert run._best.objective < start._best.objective
    assert (refined.image - first.image).abs().max() > 1e-3  # the best weights painted it, not the first


def test_batches_write_what_a_call_paints(model, tmp_path):
    files = [save_image(tmp_path / f"{i}.png", random_image(i, 100, 80)) for i in range(2)]
    (outcome,) = paint_pairs(model, [PairFiles("pair", *files)], tmp_path / "out")
    assert outcome.error is None
    expected = model(files[0], files[1], output_type="pt")
    assert (load_image(tmp_path / "out" / "pair.png").rgb[0] - expected).abs().max() < 0.01
