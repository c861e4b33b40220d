"""`optimize_pair`: what goes in, what comes out, and that nothing else counts."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.ambience import AMBIENCES

from splice_ff import PRESETS, InputError, optimize_pair

OPTIONS = {"size": 64, "steps": 2, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def short_preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "fast", replace(PRESETS["fast"], copy_steps=1, views=1))
        yield


@pytest.fixture(scope="module")
def backbone():
    from support.tiny_vit import make_vit

    from splice_ff import ViTFeatures

    return ViTFeatures(make_vit(depth=2))


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    return [np.kron(random.integers(0, 256, (10, n, 3)), np.ones((8, 8, 1))).astype(np.uint8) for n in (11, 9)]


@pytest.fixture(scope="module")
def expected(arrays, backbone, short_preset):
    return optimize_pair(*arrays, backbone=backbone, output_type="pt", **OPTIONS).image


def as_file(array, folder, kind=str):
    path = folder / f"{array.shape[1]}.png"
    Image.fromarray(array).save(path)
    return kind(path)


KINDS = {
    "path": as_file,
    "pathlib": lambda array, folder: as_file(array, folder, lambda path: path),
    "PIL": lambda array, folder: Image.fromarray(array),
    "uint8": lambda array, folder: array,
    "float": lambda array, folder: array / 255,
    "matrix of a subclass": lambda array, folder: array.view(np.recarray),
    "tensor": lambda array, folder: torch.from_numpy(array).permute(2, 0, 1),
    "batch of one": lambda array, folder: torch.from_numpy(array / 255).permute(2, 0, 1)[None],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_all_kinds_of_inputs_are_the_same(tmp_path, arrays, backbone, expected, kind):
    given = [kind(array, tmp_path) for array in arrays]
    assert torch.equal(optimize_pair(*given, backbone=backbone, output_type="pt", **OPTIONS).image, expected)


def test_an_image_comes_out_and_keeps_its_alpha(arrays, backbone, expected, tmp_path):
    options = {"backbone": backbone, **OPTIONS}
    result = optimize_pair(*arrays, **options)
    assert result.image.size == (88, 80) and result.image.mode == "RGB"
    result.image.save(tmp_path / "a.png")
    array = optimize_pair(*arrays, output_type="np", **options).image
    assert array.dtype == np.float32 and np.array_equal(array, expected[0].permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(result.image), (array * 255).round().astype(np.uint8))
    alpha = np.full((80, 88, 1), 128, np.uint8)
    cutout = optimize_pair(np.concatenate([arrays[0], alpha], 2), arrays[1], **options).image
    assert cutout.mode == "RGBA" and np.array_equal(np.asarray(cutout)[..., :3], np.asarray(result.image))
    assert np.asarray(cutout)[..., 3].min() == np.asarray(cutout)[..., 3].max() == 128


def test_hidden_colors_play_no_part(arrays, backbone):
    images = []
    for hidden in (0, 255):
        rgba = [np.concatenate([array, np.full((*array.shape[:2], 1), 255, np.uint8)], 2) for array in arrays]
        for cutout in rgba:
            cutout[:30, :30] = (hidden, hidden, hidden, 0)
        images.append(optimize_pair(*rgba, backbone=backbone, output_type="np", **OPTIONS).image)
    assert np.array_equal(*images)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"structure": None}, "NoneType"),
        ({"structure": "none.png"}, "none.png: no such file"),
        ({"appearance": np.zeros((80, 80, 3)) + np.nan}, "not finite"),
        ({"appearance": np.full((80, 80, 3), 255.0)}, r"\[0, 1\]"),
        ({"structure": np.zeros((80, 80, 3), np.int64)}, "int64"),
        ({"structure": torch.zeros(2, 3, 80, 80)}, r"\(2, 3, 80, 80\)"),
        ({"structure": np.ma.masked_equal(np.zeros((80, 80, 3), np.uint8), 0)}, "masked"),
        ({"structure": torch.zeros(3, 80, 80).to_sparse()}, "dense"),
        ({"structure": torch.zeros(3, 80, 80, device="meta")}, "plain values"),
        ({"output_type": "latent"}, "pil, np, pt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"steps": 0}, "steps"),
        ({"size": 10**6}, "megapixels"),
    ],
)
def test_what_cannot_be_used_is_named(arrays, backbone, change, says):
    given = {"structure": arrays[0], "appearance": arrays[1], "backbone": backbone, **OPTIONS} | change
    with pytest.raises(InputError, match=says):
        optimize_pair(**given)


@pytest.mark.parametrize("ambience", AMBIENCES.values(), ids=AMBIENCES)
def test_the_callers_settings_play_no_part(arrays, backbone, expected, ambience):
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    with ambience():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        image = optimize_pair(*tensors, backbone=backbone, output_type="pt", **OPTIONS).image
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()) == before
    assert image.dtype == torch.float32 and torch.equal(image, expected)


def test_a_thread_paints_the_same(arrays, backbone, expected):
    images = []

    def paint():
        images.append(optimize_pair(*arrays, backbone=backbone, output_type="pt", **OPTIONS).image)

    thread = threading.Thread(target=paint)
    thread.start()
    thread.join()
    assert torch.equal(images[0], expected)


def test_tensors_made_in_inference_mode_can_be_used(arrays, backbone, expected):
    with torch.inference_mode():
        tensors = [torch.from_numpy(array / 255).permute(2, 0, 1) for array in arrays]
    image = optimize_pair(*tensors, backbone=backbone, output_type="pt", **OPTIONS).image
    assert torch.equal(image, expected)


def test_a_callback_may_stop_the_run(arrays, backbone):
    steps = []

    def on_step(optimizer, losses):
        steps.append(losses.floats()["total"])
        if len(steps) == 3:
            optimizer.stop()

    result = optimize_pair(*arrays, backbone=backbone, on_step=on_step, **OPTIONS | {"steps": 500})
    assert len(steps) == 3 and result.step == 3 and result.image.size == (88, 80)
