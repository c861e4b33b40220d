"""What the ViT is given to see: the authors' sizes and samples, and one rule for everything else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.feature_checks import images, relative_error
from support.one_shot_model import make_model
from support.training_setup import read_config, write_run

from splice_ff.analysis.correspondence import match
from splice_ff.analysis.explain import explain
from splice_ff.analysis.inversion import FeatureInversion
from splice_ff.analysis.recipes import InversionRecipe
from splice_ff.losses import SpliceLoss
from splice_ff.one_shot.refine import PairGenerator, refiner
from splice_ff.per_pair.recipes import PRESETS
from splice_ff.training.losses import PairLosses
from splice_ff.vit.inputs import PUBLISHED, ViTInput

SHAPES = [(64, 64), (61, 64), (50, 85), (90, 40), (40, 100), (500, 180)]


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((100, 100), (224, 224)),
        ((100, 200), (224, 448)),
        ((200, 101), (443, 224)),
        ((100, 300), (160, 480)),
        ((900, 300), (480, 160)),
        ((224, 480), (224, 480)),
        ((224, 520), (224, 520)),  # its shorter side fits, and the longer one is never asked for
    ],
)
def test_published_sizes(size, seen):
    assert PUBLISHED.resize(images(1, 3, *size), (8, 8)).shape == (1, 3, *seen)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((48, 64), (48, 64)),
        ((50, 61), (48, 56)),
        ((50, 64), (48, 64)),
        ((20, 2000), (16, 104)),  # two patches at least
        ((300, 300), (48, 48)),
    ],
)
def test_sizes_in_whole_patches(size, seen):
    assert ViTInput(48).resize(images(1, 3, *size), (8, 8)).shape == (1, 3, *seen)


@pytest.mark.parametrize("size", [224, 448, 480, 518, 1036])
@pytest.mark.parametrize("published", [True, False])
def test_any_size_with_the_longer_side_in_proportion(size, published):
    """518 is DINOv2's own."""
    rule = ViTInput(size, antialias=not published, whole_patches=not published)
    assert rule.resize(images(1, 1, 30, 30), (14, 14)).shape[-2:] == (size // 14 * 14 if not published else size,) * 2
    height, width = rule.resize(images(1, 1, 30, 90), (14, 14)).shape[-2:]
    assert width == pytest.approx(size * 480 / 224, abs=7) and height == pytest.approx(width / 3, abs=7)


def bilinear(array, sides):
    """Two neighbors weighted by their distance from the sample, pixel by pixel: no antialiasing."""
    for axis, side in zip((-2, -1), sides, strict=True):
        places = ((np.arange(side) + 0.5) * array.shape[axis] / side - 0.5).clip(0, array.shape[axis] - 1)
        low = np.floor(places).astype(int)
        weight = (places - low).reshape((-1, 1) if axis == -2 else -1)
        high = (low + 1).clip(max=array.shape[axis] - 1)
        array = array.take(low, axis) * (1 - weight) + array.take(high, axis) * weight
    return array


def test_paper_reduces_without_antialiasing_as_the_authors_do():
    """The authors' losses see 512 pixels at 224: every second pixel or so is not looked at."""
    image = images(1, 3, 512, 680)
    expected = torch.from_numpy(bilinear(image.double().numpy(), (224, 297))).float()
    assert relative_error(PUBLISHED.resize(image, (8, 8)), expected) < 1e-4
    assert relative_error(ViTInput(whole_patches=False).resize(image, (8, 8)), expected) > 0.1
    assert PRESETS["paper"].vit_input == PUBLISHED


def test_losses_of_a_reduced_golden_image_are_the_authors(golden_backbone, golden_image):
    """Derived from the formula above, the golden weights and the losses' definition; antialiasing changes the keys."""
    large = F.interpolate(golden_image("loss.structure_image"), (512, 640), mode="nearest")
    large = (large + 0.3 * images(*large.shape)).clamp(0, 1)
    other = large.flip(-1)
    ours, theirs = (SpliceLoss(golden_backbone, vit_input=v).targets(large)[0] for v in (ViTInput(), PUBLISHED))
    seen = [torch.from_numpy(bilinear(x.double().numpy(), (224, 280))).float() for x in (large, other)]
    expected = [golden_backbone(x, keys=[11], cls=True) for x in seen]
    assert relative_error(theirs.keys, expected[0].keys[11]) < 1e-4
    assert relative_error(ours.keys, expected[0].keys[11]) > 0.01
    losses = SpliceLoss(golden_backbone, vit_input=PUBLISHED)(other, theirs, theirs)
    structure = (expected[1].self_similarity() - expected[0].self_similarity()).square().mean()
    assert losses.structure.item() == pytest.approx(structure.item(), rel=1e-3)
    appearance = (expected[1].cls[:, 11] - expected[0].cls[:, 11]).square().mean()
    assert losses.appearance.item() == pytest.approx(appearance.item(), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_training_inference_refining_and_analysis_see_the_same(tiny_backbone, tmp_path, vit_state, shape):
    model = make_model(tiny_backbone())
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    config = read_config(write_run(tmp_path, vit_state, loss__vit_size=48))
    image = images(1, 3, *shape)

    PairLosses(config, model.generator, model.backbone).encode_images(image)
    PairLosses(config, model.generator, model.backbone).encode(image)
    model.encode_images(image)
    PairGenerator(model, model.embed(image))(image)
    match(model.backbone, image, image, size=48)
    FeatureInversion(model.backbone, image, InversionRecipe(prior="pixels", size=48))
    assert len(seen) >= 6
    assert all(torch.equal(x, seen[0]) for x in seen[:-1])  # the last is what the inversion starts from
    assert PRESETS["fast"].vit_input == ViTInput()
    assert refiner(model, image, image, steps=1, size=64).recipe.vit_input == ViTInput(48)
    seen.clear()
    SpliceLoss(model.backbone).targets(image)
    explain(model.backbone, image, image, image)
    assert torch.equal(seen[0], seen[-2][:1])
