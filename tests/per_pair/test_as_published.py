"""Where `paper` follows the authors' code, row by row, with numbers; `fast` may differ, by data."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from splice_ff import PairOptimizer, ViTFeatures
from splice_ff.per_pair import augment
from splice_ff.per_pair import optimizer as module
from splice_ff.per_pair.augment import appearance_views, structure_views
from splice_ff.per_pair.recipes import PRESETS, make_recipe


@pytest.fixture(scope="module")
def backbone():
    from support.tiny_vit import make_vit

    return ViTFeatures(make_vit(depth=2))


def optimizer(backbone, **changes):
    images = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return PairOptimizer(*images, backbone, make_recipe("paper", size=64, steps=200, **changes))


def objective_of(run, monkeypatch):
    """The number that a step minimizes, and the losses of all passes that it sums, in their order."""
    passes, objectives, call, backward = [], [], module.compare, torch.Tensor.backward

    def noted(*arguments):
        passes.append(call(*arguments))
        return passes[-1]

    monkeypatch.setattr(module, "compare", noted)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: (objectives.append(self.item()), backward(self)))
    monkeypatch.setattr(run, "_evaluate", lambda: None)
    run.step()
    return objectives[0], [losses.floats() for losses in passes]


def test_step_0_has_no_structure_nor_identity_loss_of_the_views(backbone, monkeypatch):
    """`cls_warmup: 1` in the authors' configuration; the whole image's losses are there, as 0 is a multiple of 75."""
    objective, (views, whole) = objective_of(optimizer(backbone), monkeypatch)
    assert objective == pytest.approx(10 * views["appearance"] + whole["structure"] + 10 * whole["appearance"])
    assert views["structure"] > 0 and views["identity"] > 0


@pytest.mark.parametrize("step", [1, 74, 76])
def test_later_steps_have_all_three(backbone, monkeypatch, step):
    run = optimizer(backbone)
    run.step_count = step
    objective, (views,) = objective_of(run, monkeypatch)
    assert objective == pytest.approx(views["structure"] + 10 * views["appearance"] + views["identity"])


@pytest.mark.parametrize("step", [75, 150])
def test_every_75th_step_adds_the_whole_image(backbone, monkeypatch, step):
    run = optimizer(backbone)
    run.step_count = step
    objective, (views, whole) = objective_of(run, monkeypatch)
    assert whole["identity"] == 0
    assert objective == pytest.approx(views["total"] + whole["total"])


def test_the_warm_up_is_data():
    assert (PRESETS["paper"].cls_warmup, PRESETS["fast"].cls_warmup) == (1, 0)
    assert (PRESETS["paper"].jitter_in_8_bits, PRESETS["fast"].jitter_in_8_bits) == (True, False)


@pytest.mark.parametrize("views", [structure_views, appearance_views])
def test_all_offsets_of_a_crop_are_equally_likely(views, monkeypatch):
    """Offsets 0, 1 and 2 of a crop two pixels smaller: a third each. Rounded, the edges would have a quarter each."""
    monkeypatch.setattr(augment, "FLIP_PROBABILITY", 0)
    monkeypatch.setattr(augment, "JITTER_PROBABILITY", 0)
    monkeypatch.setattr(augment, "BLUR_PROBABILITY", 0)
    rows = torch.arange(40).view(-1, 1).expand(40, 40)
    image = torch.stack([rows, rows.T, rows * 0]).float()[None] / 255
    generator, counts = torch.Generator().manual_seed(0), np.zeros((2, 3))
    while counts[0].sum() < 1200:
        view = views(image, generator)
        if view.shape[-1] == 38:
            top, left = (view[0, :2, 0, 0] * 255).round().int().tolist()
            counts[0, top] += 1
            counts[1, left] += 1
    assert np.abs(counts / counts[0].sum() - 1 / 3).max() < 0.05, counts


def test_jitter_rounds_to_8_bits_after_every_change(monkeypatch):
    """Brightness, then contrast, as Pillow does them on 8 bits: exact, and different from floats."""
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
    factors = iter([0.71, 1.37])  # brightness, contrast
    monkeypatch.setattr(augment, "randperm", lambda n, generator: torch.arange(2))
    monkeypatch.setattr(augment, "_happens", lambda probability, generator: True)
    monkeypatch.setattr(augment, "_uniform", lambda low, high, generator: next(factors))
    pil = Image.fromarray(array)
    expected = ImageEnhance.Contrast(ImageEnhance.Brightness(pil).enhance(0.71)).enhance(1.37)
    made = augment._jitter(pil, None)
    assert np.array_equal(np.asarray(made), np.asarray(expected))
    factors = iter([0.71, 1.37])
    floats = augment._jitter(image, None)[0].permute(1, 2, 0).numpy() * 255
    assert 0.3 < np.abs(floats - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize("in_8_bits", [True, False])
def test_views_of_paper_hold_256_values_a_channel(in_8_bits):
    image = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    image = (image * 255).round() / 255
    generator, off = torch.Generator().manual_seed(1), []
    for _ in range(30):
        view = structure_views(image, generator, in_8_bits) * 255
        off.append((view - view.round()).abs().max().item())
    assert (max(off) < 1e-3) == in_8_bits
