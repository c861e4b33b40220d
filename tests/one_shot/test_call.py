"""`model(structure, appearance)`: what it takes, gives, refuses and does not depend on."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from support.one_shot_model import make_model, random_image

from splice_ff.errors import InputError
from splice_ff.images import load_image, save_image
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.one_shot.refine import SIZE_FACTOR, refine
from splice_ff.vit.weights import load_backbone

AS = {
    "path": lambda image, folder: str(save_image(folder / "image.png", image)),
    "pathlib": lambda image, folder: save_image(folder / "image.png", image),
    "PIL": lambda image, folder: Image.open(save_image(folder / "image.png", image)),
    "uint8": lambda image, folder: np.asarray(AS["PIL"](image, folder)),
    "float": lambda image, folder: AS["uint8"](image, folder) / 255,
    "float16 tensor": lambda image, folder: torch.from_numpy(AS["float"](image, folder)).permute(2, 0, 1).half(),
    "uint8 tensor": lambda image, folder: torch.from_numpy(AS["uint8"](image, folder).copy()).permute(2, 0, 1),
}


@pytest.fixture
def model(tiny_backbone):
    return make_model(tiny_backbone())


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Not timed: that takes seconds where bfloat16 is emulated."""
    monkeypatch.setattr("splice_ff.per_pair.optimizer.fastest_dtype", lambda device: torch.float32)


# --- what it takes and gives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AS)
def test_images_of_every_kind(model, tmp_path, kind):
    structure, appearance = random_image(1, 48, 64), random_image(2, 40, 40)
    expected = model.paint(structure, model.embed(appearance))
    for name in "sa":
        (tmp_path / name).mkdir()
    made = model(AS[kind](structure, tmp_path / "s"), AS[kind](appearance, tmp_path / "a"))
    assert isinstance(made, Image.Image) and made.size == (64, 48)
    assert (load_image(made).rgb - expected).abs().max() < 0.02  # 8 bits on the way in and out


def test_what_comes_back_has_the_form_of_the_structure(model):
    batch, appearance = random_image(1, 32, 48, batch=2), random_image(2)
    array = batch.permute(0, 2, 3, 1).numpy()
    cases = [
        (batch[0], "pt", (3, 32, 48)),
        (batch, "pt", (2, 3, 32, 48)),
        (batch[:1], "pt", (1, 3, 32, 48)),
        (array[0], "np", (32, 48, 3)),
        (array, "np", (2, 32, 48, 3)),
        (array, "pt", (2, 3, 32, 48)),
    ]
    for structure, output_type, shape in cases:
        made = model(structure, appearance, output_type=output_type)
        assert isinstance(made, torch.Tensor if output_type == "pt" else np.ndarray)
        assert tuple(made.shape) == shape and str(made.dtype).endswith("float32")
    for structure in (batch, list(batch), tuple(array)):
        made = model(structure, appearance)
        assert isinstance(made, list) and [type(image) for image in made] == [Image.Image] * 2


def test_a_list_of_any_sizes_equals_its_images_alone(model):
    structures = [random_image(1, 48, 64), random_image(2, 64, 40), random_image(3, 48, 64)]
    appearances = [random_image(4, 32, 32), random_image(5, 64, 80), random_image(6, 32, 32)]
    structures, appearances = [s[0] for s in structures], [a[0] for a in appearances]
    pt = partial(model, output_type="pt")
    for structure, appearance, made in zip(structures, appearances, pt(structures, appearances), strict=True):
        torch.testing.assert_close(made, pt(structure, appearance), atol=1e-5, rtol=0)
    for structure, made in zip(structures, pt(structures, appearances[0]), strict=True):
        torch.testing.assert_close(made, pt(structure, appearances[0]), atol=1e-5, rtol=0)


def test_images_of_one_size_share_passes_that_fit_in_memory(model, monkeypatch):
    counts, paint = [], model.paint
    monkeypatch.setattr(model, "paint", lambda x, *rest, **more: counts.append(len(x)) or paint(x, *rest, **more))
    model(random_image(1, batch=5), random_image(2))
    assert counts == [5]
    counts.clear()
    monkeypatch.setattr("splice_ff.one_shot.call.MAX_UNTILED", 2 * 64 * 64)
    model(random_image(1, batch=5), random_image(2))
    assert counts == [2, 2, 1]


def test_alpha_comes_back(model):
    rgba = torch.cat([random_image(1), torch.rand(1, 1, 64, 64)], 1)
    made = model(rgba[0], random_image(2))
    assert made.mode == "RGBA" and (load_image(made).alpha - rgba[:, 3:]).abs().max() < 0.01
    assert model(rgba, random_image(2), output_type="pt").shape == (1, 4, 64, 64)
    opaque = torch.cat([random_image(3), torch.ones(1, 1, 64, 64)], 1)
    assert model(opaque[0], random_image(2)).mode == "RGB"
    batch = model(torch.cat([rgba, opaque]), random_image(2), output_type="np")
    assert batch.shape == (2, 64, 64, 4) and (batch[1, ..., 3] == 1).all()


def test_weights_mix_and_strength_and_size_reach_the_painting(model):
    a, b, c = random_image(1), random_image(2, 32, 40), random_image(3)
    tokens = model.mix([model.embed(b), model.embed(c)], [3, 1])
    made = model(a, [b[0], c[0]], weights=[3, 1], size=np.int64(48), strength=np.float32(0.5), output_type="pt")
    torch.testing.assert_close(made, model.paint(a, tokens, size=48, strength=0.5), atol=1e-6, rtol=0)


# --- refining and the callback --------------------------------------------------------------------------------------


def test_refining_lowers_the_losses_and_tells_of_every_step(model):
    seen = []
    one_shot = model(random_image(1), random_image(2), output_type="pt")
    made = model(random_image(1), random_image(2), refine=4, output_type="pt", callback=seen.append)
    assert [(p.done, p.total) for p in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert set(seen[0].losses) == {"total", "structure", "appearance", "identity"}
    assert seen[-1].preview().shape == made.shape and (made - one_shot).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "used"), [(None, round(SIZE_FACTOR * 64)), (72, 72)])
def test_refining_works_at_its_own_size_unless_told_otherwise(model, size, used):
    structure, appearance = random_image(1, 100, 120), random_image(2)
    made = model(structure, appearance, refine=2, size=size, output_type="pt")
    expected = refine(model, structure, appearance, steps=2, size=used).image
    torch.testing.assert_close(made, expected)


def test_the_callback_ends_refining_with_the_best_so_far(model):
    calls = []
    made = model(
        list(random_image(1, batch=3)), random_image(2), refine=5, callback=lambda p: calls.append(p.done) or p.done < 7
    )
    assert calls == list(range(1, 8))
    assert [type(image) for image in made] == [Image.Image, Image.Image, type(None)]


def test_the_callback_ends_painting(model, monkeypatch):
    monkeypatch.setattr("splice_ff.one_shot.call.MAX_UNTILED", 2 * 64 * 64)
    seen = []
    made = model(
        random_image(1, batch=5), random_image(2), output_type="pt", callback=lambda p: seen.append(p) or p.done < 4
    )
    assert [(p.done, p.total) for p in seen] == [(2, 5), (4, 5)]
    assert [image is None for image in made] == [False, False, False, False, True]


def test_an_error_in_the_callback_is_the_callers(model):
    def fail(progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model(random_image(1), random_image(2), refine=2, callback=fail)


# --- what it refuses ------------------------------------------------------------------------------------------------

GOOD = random_image(1)
NAN = torch.full((1, 3, 64, 64), torch.nan)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((GOOD * 255, GOOD), ["structure", "[0, 1]"]),
        ((GOOD, GOOD * 2 - 1), ["appearance", "[0, 1]"]),
        ((NAN, GOOD), ["structure", "[0, 1]"]),
        ((GOOD[0] * torch.inf, GOOD), ["structure", "[0, 1]"]),
        ((GOOD.long(), GOOD), ["structure", "int64", "uint8, or float"]),
        ((GOOD[0].permute(1, 2, 0), GOOD), ["structure", "(64, 64, 3)", "(C, H, W)"]),
        ((GOOD[0].numpy(), GOOD), ["structure", "(3, 64, 64)", "(H, W, 3)"]),
        ((GOOD[None], GOOD), ["structure", "(1, 1, 3, 64, 64)"]),
        ((torch.rand(0, 3, 64, 64), GOOD), ["structure", "no image"]),
        (([], GOOD), ["structure", "no image"]),
        (([GOOD[0], GOOD[0] * 9], GOOD), ["structure", "image 1", "[0, 1]"]),
        ((GOOD[..., :8], GOOD), ["structure", "64", "8"]),
        ((None, GOOD), ["structure", "NoneType"]),
        ((b"bytes", GOOD), ["structure", "bytes"]),
        (({"a": 1}, GOOD), ["structure", "dict"]),
        (("missing.jpg", GOOD), ["structure", "missing.jpg"]),
        ((np.array(["a", "b"]), GOOD), ["structure"]),
        ((np.full((64, 64, 3), 0.5 + 0j), GOOD), ["structure", "complex"]),
        ((np.full((64, 64, 3), object()), GOOD), ["structure", "object"]),
        (([GOOD[0]] * 2, [GOOD[0]] * 3), ["2 structure", "3 appearance"]),
        ((GOOD, [GOOD[0]] * 2), ["1 structure", "2 appearance", "weights"]),
        ((GOOD, [GOOD[0]] * 2, {"weights": [1]}), ["2 looks", "1 weights"]),
        ((GOOD, [GOOD[0]] * 2, {"weights": [1, -1]}), ["weights", "-1"]),
        ((GOOD, GOOD, {"weights": ["much"]}), ["weights", "much"]),
        ((GOOD, GOOD, {"weights": 3}), ["weights", "3"]),
        *[((GOOD, GOOD, {"size": size}), ["size"]) for size in (0, 10**7, "64", 64.5, True, float("nan"))],
        *[((GOOD, GOOD, {"strength": s}), ["strength"]) for s in (1.1, -1, "1", None, float("nan"))],
        *[((GOOD, GOOD, {"refine": r}), ["refine"]) for r in (-1, 1.5, "2", None)],
        ((GOOD, GOOD, {"refine": 2, "strength": 0.5}), ["refine", "strength"]),
        ((GOOD, GOOD, {"refine": 2, "weights": [1]}), ["refine", "weights"]),
        *[((GOOD, GOOD, {"output_type": t}), ["output_type", "pil"]) for t in ("PIL", "tensor", None)],
        *[((GOOD, GOOD, {"refine": 1, "seed": s}), ["seed"]) for s in (-1, 0.5, "a")],
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(model, arguments, words):
    options = arguments[2] if len(arguments) > 2 else {}
    with pytest.raises(InputError) as caught:
        model(*arguments[:2], **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (GOOD * 255, r"\[0, 1\]"),
        (NAN, "nan"),
        ((GOOD * 255).byte(), "uint8"),
        (GOOD[0], r"\(3, 64, 64\)"),
        (GOOD[:, :1], r"\(1, 1, 64, 64\)"),
        (GOOD[0].numpy(), "ndarray"),
    ],
)
def test_the_tensor_layer_checks_too(model, images, word):
    with pytest.raises(InputError, match=word):
        model.embed(images)
    with pytest.raises(InputError, match=word):
        model.paint(images, model.embed(GOOD))


def test_tokens_for_another_number_of_images(model):
    with pytest.raises(InputError, match="3 looks for 2"):
        model.paint(random_image(1, batch=2), model.embed(random_image(2, batch=3)))


# --- what it does not depend on -------------------------------------------------------------------------------------


def everything(folder, backbone):
    """Load, paint, mix and refine."""
    model = SpliceFF.from_pretrained(folder, backbone=backbone)
    a, b = np.full((64, 48, 3), 0.25, np.float32), np.random.default_rng(0).random((40, 40, 3), np.float32)
    np_out = partial(model, output_type="np")
    return [np_out(a, b), np_out(a, [a, b], weights=[1, 2], strength=0.5), np_out(a, b, refine=2)]


@pytest.fixture
def folder(vit_folder, tmp_path):
    make_model(load_backbone(str(vit_folder))).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def in_default_dtype(call):
    torch.set_default_dtype(torch.float64)
    try:
        return call()
    finally:
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)


def on_default_device(call):
    with torch.device("meta"):
        return call()


def in_inference_mode(call):
    with torch.inference_mode():
        return call()


def in_no_grad(call):
    with torch.no_grad():
        made = call()
        assert not torch.is_grad_enabled()
        return made


def in_a_thread(call):
    made = []
    thread = threading.Thread(target=lambda: made.extend(call()))
    thread.start()
    thread.join()
    return made


@pytest.mark.parametrize("ambience", [in_default_dtype, on_default_device, in_inference_mode, in_no_grad, in_a_thread])
def test_the_callers_ambience_changes_nothing(folder, vit_folder, ambience):
    expected = everything(folder, vit_folder)
    for made, same in zip(ambience(lambda: everything(folder, vit_folder)), expected, strict=True):
        np.testing.assert_allclose(made, same, atol=1e-5)


def test_inference_tensors_can_be_refined(model):
    with torch.inference_mode():
        structure, appearance = random_image(1), random_image(2)
    assert isinstance(model(structure[0], appearance, refine=1), Image.Image)


def test_threads_share_a_model(model):
    made = {}
    threads = [
        threading.Thread(
            target=lambda i=i: made.update({i: model(random_image(i), random_image(i + 9), output_type="pt")})
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert torch.equal(made[i], model(random_image(i), random_image(i + 9), output_type="pt"))


@pytest.mark.parametrize(
    "make", [lambda x: x.view(np.ma.MaskedArray), lambda x: x.view(np.recarray), np.asfortranarray, np.flipud]
)
def test_numpy_subclasses_and_strides(model, make):
    gray = np.random.default_rng(0).integers(0, 255, (64, 48), np.uint8)
    made, same = (model(x, random_image(2), output_type="np") for x in (make(gray), np.array(make(gray))))
    np.testing.assert_array_equal(made, same)


# --- half precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "convert", [lambda m, d: m.to(d), lambda m, d: m.half() if d == torch.float16 else m.bfloat16()]
)
def test_half_precision_paints_nearly_the_same(tiny_backbone, dtype, convert):
    """At most 0.01 on average, 0.1 at any pixel, of a range of 1."""
    model = make_model(tiny_backbone(), context="cls+patches")
    structure, appearance = random_image(1, 70, 90), random_image(2)
    full, fingerprint = model(structure, appearance, strength=0.8, output_type="pt"), model.fingerprint
    assert convert(model, dtype) is model and model.dtype == dtype
    made = model(structure, appearance, strength=0.8, output_type="pt")
    assert made.dtype == torch.float32
    assert 0 < (made - full).abs().mean() < 0.01 and (made - full).abs().max() < 0.1
    assert model.fingerprint == fingerprint  # so that looks still fit
    assert isinstance(model(structure[0], appearance, refine=1), Image.Image)
    assert model.float().dtype == torch.float32


def test_half_precision_in_tiles(model, monkeypatch):
    structure, tokens = random_image(1, 96, 96), model.embed(random_image(2))
    whole = model.bfloat16().paint(structure, tokens, size=96)
    monkeypatch.setattr("splice_ff.one_shot.model.MAX_UNTILED", 64 * 64)
    assert (model.paint(structure, tokens, size=96) - whole).abs().mean() < 0.02


def test_loading_in_half_precision(folder, vit_folder):
    for dtype in (torch.bfloat16, torch.float16):
        assert SpliceFF.from_pretrained(folder, backbone=vit_folder, dtype=dtype).dtype == dtype
    for wrong in ({"dtype": torch.float64}, {"dtype": "half"}, {"device": "warp"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            SpliceFF.from_pretrained(folder, backbone=vit_folder, **wrong)
