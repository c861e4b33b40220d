"""Metrics on images whose answers are known."""

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from splice_ff.errors import InputError
from splice_ff.evaluation import perceptual
from splice_ff.evaluation.image_metrics import (
    checkerboard,
    color_distance,
    edge_agreement,
    high_frequency_excess,
    texture_distance,
)
from splice_ff.evaluation.metrics import METRICS, Measurer, cls_cosine, metrics_of, self_sim
from splice_ff.losses import SpliceLoss
from splice_ff.utils.color import lab_to_rgb, match_colors, rgb_to_lab
from splice_ff.utils.resize import resize_shorter_side
from splice_ff.vit.inputs import PUBLISHED


def noise(seed, size=256, scale=1.0):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture(scope="module")
def image():
    """A smooth, muted image with edges and some grain, 256 x 256: colors that can move without being clipped."""
    coarse = torch.nn.functional.interpolate(noise(0, 12), (256, 256), mode="bicubic").clamp(0, 1)
    return 0.35 + 0.3 * (0.9 * coarse + 0.1 * noise(1))


@pytest.fixture(scope="module")
def shuffled(image):
    """The same image with its 32-pixel patches permuted."""
    patches = image.unfold(2, 32, 32).unfold(3, 32, 32).reshape(1, 3, 64, 32, 32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    rows = patches[:, :, order].reshape(1, 3, 8, 8, 32, 32)
    return rows.permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 256, 256)


def shifted(image, by):
    moved = rgb_to_lab(image) + torch.tensor(by).view(3, 1, 1)
    made = lab_to_rgb(moved)
    assert (rgb_to_lab(made) - moved).abs().max() < 0.02  # nothing was clamped: the answer below is exact
    return made


def with_board(image, amplitude, period):
    """A square wave of that period on L*, both ways."""
    wave = torch.where(torch.arange(image.shape[-1]) % period < period // 2, 1.0, -1.0)
    return shifted_lightness(image, amplitude * wave[:, None] * wave)


def shifted_lightness(image, by):
    lab = rgb_to_lab(image)
    lab[:, 0] += by
    return lab_to_rgb(lab)


def test_lab_is_scikit_images():
    colors = noise(3, 64)
    expected = rgb2lab(colors[0].permute(1, 2, 0).double().numpy())
    assert np.abs(rgb_to_lab(colors)[0].permute(1, 2, 0).numpy() - expected).max() < 0.02
    assert (lab_to_rgb(rgb_to_lab(colors)) - colors).abs().max() < 1e-3


def test_color_transfer_takes_mean_and_deviation(image):
    look = shifted(0.5 + (image.flip(-1) - 0.5) * 0.7, [5.0, 8.0, -6.0])
    statistics = [torch.std_mean(rgb_to_lab(x), (-2, -1)) for x in (match_colors(image, look), look)]
    for ours, theirs in zip(*statistics, strict=True):
        assert (ours - theirs).abs().max() < 0.05


def test_identical_images(image):
    assert color_distance(image, image) == 0
    assert texture_distance(image, image) == 0
    assert edge_agreement(image, image) == pytest.approx(1, abs=1e-5)
    assert high_frequency_excess(image, image, image) == 0


def test_permuted_patches_keep_colors_and_texture_but_no_edges(image, shuffled):
    assert color_distance(shuffled, image) < 1e-5
    other = noise(7)
    assert texture_distance(shuffled, image) < 0.1 * texture_distance(other, image)
    assert abs(edge_agreement(shuffled, image)) < 0.3


def test_pure_color_shift(image):
    by = [0.0, 9.0, -6.0]
    moved = shifted(image, by)
    assert color_distance(moved, image) == pytest.approx(math.hypot(*by) / 2, rel=0.04)
    assert texture_distance(moved, image) < 0.01
    assert edge_agreement(moved, image) > 0.999


def test_edges_run_the_same_way_in_the_negative(image):
    lab = rgb_to_lab(image)
    lab[:, 0] = 100 - lab[:, 0]
    assert edge_agreement(lab_to_rgb(lab), image) > 0.99


def test_edges_across_each_other_disagree():
    stripes = shifted_lightness(torch.full((1, 3, 256, 256), 0.5), 10 * torch.sin(torch.arange(256) / 5))
    # -(mean of |cos|)^2 over the mean of cos^2: they are strong in different places too
    assert edge_agreement(stripes.mT, stripes) == pytest.approx(-8 / math.pi**2, abs=0.01)


@pytest.mark.parametrize("amplitude", [0.5, 2.0])
def test_checkerboard_is_measured_in_lightness(amplitude):
    gray = torch.full((1, 3, 256, 256), 0.5)
    assert checkerboard(gray) < 1e-3
    assert checkerboard(with_board(gray, amplitude, 2)) == pytest.approx(amplitude, rel=0.01)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_checkerboard_is_found_in_an_image_at_every_stride(image, period):
    assert checkerboard(with_board(image, 2.0, period)) > checkerboard(image) + 0.5


def test_checkerboard_does_not_take_noise_for_a_pattern(image):
    random = torch.randn(256, 256, generator=torch.Generator().manual_seed(4))
    grainy = shifted_lightness(torch.full((1, 3, 256, 256), 0.5), 4 * random)
    assert checkerboard(grainy) < 0.2


def test_checkerboard_of_another_period_is_none():
    gray = torch.full((1, 3, 258, 258), 0.5)
    assert checkerboard(with_board(gray, 2.0, 6)) < 0.5


def test_texture_tells_contrast_and_scale(image):
    flat = 0.5 + (image - 0.5) * 0.5
    assert texture_distance(flat, image) > 0.3
    coarse, fine = (torch.nn.functional.interpolate(noise(5, n, 0.5), (256, 256)) for n in (32, 128))
    same = torch.nn.functional.interpolate(noise(6, 32, 0.5), (256, 256))
    assert texture_distance(coarse, fine) > 5 * texture_distance(coarse, same)


def test_high_frequency_excess_is_over_both_inputs(image):
    blurred = resize_shorter_side(resize_shorter_side(image, 64), 256)
    assert high_frequency_excess(image, blurred, blurred) > 3
    assert high_frequency_excess(image, blurred, image) == 0
    assert high_frequency_excess(blurred, image, image) == 0
    gray = torch.full((1, 3, 256, 256), 0.5)
    one, two = with_board(gray, 1.0, 2), with_board(gray, 2.0, 2)
    assert high_frequency_excess(two, one, gray) == pytest.approx(10 * math.log10(4), abs=0.1)


def test_self_sim_of_the_golden_keys(golden, golden_backbone, golden_image):
    keys = golden_backbone(golden_image("square.image"), keys=[-1]).keys[11]
    queries = golden["square.queries_layer11"]
    directions = queries.permute(1, 0, 2).flatten(1).numpy()
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.abs(golden["square.keys_self_similarity_layer11"].numpy() - directions @ directions.T).mean()
    assert self_sim(keys, queries[None]) == pytest.approx(expected, rel=1e-3)
    assert self_sim(keys, golden["square.keys_layer11"][None]) < 1e-5


def test_cls_cosine_of_the_golden_tokens(golden, golden_backbone, golden_image):
    cls = golden_backbone(golden_image("square.image"), cls=True).cls
    a, b = golden["square.cls_per_layer"][11].numpy(), golden["nonsquare.cls_per_layer"][10].numpy()
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cls_cosine(cls[:, 11], torch.from_numpy(b)[None]) == pytest.approx(expected, abs=1e-4)
    assert cls_cosine(cls[:, 11], torch.from_numpy(a)[None]) == pytest.approx(1, abs=1e-5)


def test_all_metrics_of_the_golden_pair(golden, golden_backbone, golden_image):
    structure, appearance, output, identity = (
        golden_image(f"loss.{name}_image") for name in ("structure", "appearance", "output", "identity")
    )
    measurer = Measurer(golden_backbone)
    measurer.loss = SpliceLoss(golden_backbone, vit_input=PUBLISHED)  # the original code does not antialias
    found = measurer(output, measurer.reference(structure, appearance), identity)
    assert set(found) == {metric.name for metric in METRICS}
    for name in ("structure", "appearance", "identity"):
        assert found[name] == pytest.approx(golden[f"loss.{name}"].item(), rel=1e-3)
    assert found["objective"] == pytest.approx(found["structure"] + 10 * found["appearance"])


def test_another_backbone_sees_too(tiny_backbone, image, shuffled):
    measurer = Measurer(tiny_backbone(0), [tiny_backbone(1)])
    name = measurer.loss.backbone.name
    found = measurer(image, measurer.reference(image, shuffled))
    assert set(found) == {metric.name for metric in metrics_of([name])} - {"identity"}
    assert found[f"self_sim@{name}"] == 0 < found["edges"]
    assert found[f"cls_cosine@{name}"] != found["cls_cosine"]


def test_outputs_of_another_size_are_measured_at_the_structure_images(tiny_backbone, image, shuffled):
    measurer = Measurer(tiny_backbone())
    reference = measurer.reference(image, shuffled)
    small = measurer(resize_shorter_side(image, 192), reference)
    assert small["structure"] < 0.1 * measurer(shuffled, reference)["structure"]


def test_lpips_says_why_it_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    assert perceptual.find_lpips(torch.device("cpu")) == (None, "LPIPS (torchmetrics is not installed)")
    monkeypatch.setattr(perceptual, "find_spec", lambda name: name)
    lpips, reason = perceptual.find_lpips(torch.device("cpu"))
    assert lpips is None and reason == f"LPIPS (no {tmp_path}/checkpoints/alexnet-owt-7be5be79.pth)"


def test_lpips_is_of_output_and_structure(tiny_backbone, image, shuffled):
    measurer = Measurer(tiny_backbone(), lpips=lambda a, b: (a - b).abs().mean().item())
    found = measurer(image, measurer.reference(image, shuffled))
    assert found["lpips"] == 0 and metrics_of((), with_lpips=True)[-1].name == "lpips"


def test_what_cannot_be_measured_is_refused(tiny_backbone, image):
    measurer = Measurer(tiny_backbone())
    with pytest.raises(InputError, match="structure image of 40x64 pixels"):
        measurer.reference(image[..., :64, :40], image)
    with pytest.raises(InputError, match="the output has values that are not finite"):
        measurer(image * math.nan, measurer.reference(image, image))
