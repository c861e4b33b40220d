"""Per-pair steps from the one-shot answer: from it, downhill, and never back."""

import copy

import pytest
import torch
from support.one_shot_model import make_model, random_image

from splice_ff.errors import InputError
from splice_ff.one_shot.refine import PairGenerator, refine, refiner, refining_size


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Not timed: that takes seconds where bfloat16 is emulated."""
    monkeypatch.setattr("splice_ff.per_pair.optimizer.fastest_dtype", lambda device: torch.float32)


@pytest.fixture
def model(tiny_backbone):
    return make_model(tiny_backbone(patch_size=16))


def one_shot(model, structure, appearance, size=None):
    """What the model paints, at the size at which it is refined."""
    return model(structure, appearance, size=size or refining_size(model), output_type="pt")


@pytest.mark.parametrize(("kind", "size"), [("tiny", None), ("tiny", 64), ("tiny-grid", None)])
def test_the_first_candidate_is_the_one_shot_image(tiny_backbone, kind, size):
    model = make_model(tiny_backbone(patch_size=16), generator=kind)
    structure, appearance = random_image(1, 80, 100), random_image(2, 90, 70)
    run = refiner(model, structure, appearance, steps=5, size=size)
    assert run.side == (size or round(1.4 * model.config.size))
    assert run.result().step == 0
    torch.testing.assert_close(run.result().image, one_shot(model, structure, appearance, size), atol=1e-5, rtol=0)


def test_losses_fall(model):
    structure, appearance = random_image(1), random_image(2)
    before = refiner(model, structure, appearance, steps=5).result().losses["total"]
    seen = []
    result = refine(model, structure, appearance, steps=15, on_step=lambda run, losses: seen.append(run.step_count))
    assert result.step == 15 and seen == list(range(1, 16))
    assert result.losses["total"] < 0.9 * before


def test_the_result_is_never_worse(model):
    """Steps that lead uphill leave the one-shot image."""
    structure, appearance = random_image(1), random_image(2)
    run = refiner(model, structure, appearance, steps=3)
    run.adam.param_groups[0]["maximize"] = True
    while not run.done:
        run.step()
    assert run.step_count == 3
    assert (run.preview() - one_shot(model, structure, appearance)).abs().max() > 0.01
    assert run.result().step == 0
    assert torch.equal(run.result().image, one_shot(model, structure, appearance))


def test_the_model_is_left_as_it_is(model):
    structure, appearance = random_image(1), random_image(2)
    before, fingerprint = model(structure, appearance, output_type="pt"), model.fingerprint
    refine(model, structure, appearance, steps=2)
    assert model.fingerprint == fingerprint
    assert torch.equal(model(structure, appearance, output_type="pt"), before)


def test_the_same_seed_the_same_image(model):
    structure, appearance = random_image(1), random_image(2)
    assert torch.equal(
        refine(model, structure, appearance, steps=3).image, refine(model, structure, appearance, steps=3).image
    )


def test_the_pairs_generator_has_no_vit_in_its_state(model):
    generator = PairGenerator(model, model.embed(random_image(2)))
    assert {k for k in generator.state_dict() if not k.startswith("correction.")} == {"appearance_tokens"} | {
        f"unet.{k}" for k in model.generator.unet.state_dict()
    }
    assert torch.equal(generator(random_image(1)), model(random_image(1), random_image(2), output_type="pt"))
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    image = random_image(3)
    assert torch.equal(generator(image), generator(image)) and len(passes) == 1


@pytest.mark.parametrize("size", ["tiny", "tiny-grid"])
def test_what_learns_and_that_the_rest_is_computed_once_an_image(tiny_backbone, size):
    model = make_model(tiny_backbone(patch_size=16), generator=size)
    run, passes = refiner(model, random_image(1), random_image(2), steps=3), []
    before = {k: v.clone() for k, v in run.generator.state_dict().items()}
    for unet in (run.generator.unet, model.generator.unet):
        unet.stem.register_forward_hook(lambda *_: passes.append("encoder"))
        unet.up[-1].register_forward_hook(lambda *_: passes.append("finest scale"))
    while not run.done:
        run.step()
    after = run.generator.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    finest = len(run.generator.unet.up) - 1
    parts = {
        "correction",
        "unet.color_affine",
        *(f"unet.{kind}.{i}" for kind in ("upsample", "up") for i in range(finest)),
    }
    parts |= {"unet.guide"} if size == "tiny-grid" else set()
    assert all(any(name.startswith(f"{part}.") for name in changed) for part in parts)
    assert all(any(name.startswith(f"{part}.") for part in parts) for name in changed)
    assert passes == ["encoder", "finest scale"], "the structure image, once: the look is never repainted"


def test_making_it_leaves_the_callers_random_numbers(model):
    tokens = model.embed(random_image(2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    PairGenerator(model, tokens)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("height, width", [(64, 64), (65, 79), (90, 66)])
def test_the_correction_covers_images_of_any_size(model, height, width):
    """Half of an odd number of pixels: the map has the rows and columns of the padding, which the image lacks."""
    generator, image = PairGenerator(model, model.embed(random_image(2))), random_image(1, height, width)
    before = generator(image)
    with torch.no_grad():
        generator.correction[-1].bias.fill_(1.0)
    after = generator(image)
    assert after.shape == image.shape and ((after > before) | (after == 1) | (before == 0)).all()


def test_maps_met_under_autocast_serve_in_float32_as_well(model):
    """As in a run that goes on from a saved state: its first image is a step's, not an evaluation's."""
    image = random_image(1)
    generator = PairGenerator(model, model.embed(random_image(2)))
    with torch.autocast("cpu", torch.bfloat16):
        generator(image)
    assert torch.equal(generator(image), model(image, random_image(2), output_type="pt"))


def test_model_and_state_say_all_of_the_image(model):
    structure, appearance = random_image(3), random_image(2)
    run = refiner(model, structure, appearance, steps=2)
    run.step()
    expected = run.preview()
    restored = PairGenerator(model, model.embed(random_image(4)))
    restored.load_state_dict(run.generator.state_dict())
    assert torch.equal(restored.at_full_size(run.structure, structure), expected)
    assert torch.equal(copy.deepcopy(restored).at_full_size(run.structure, structure), expected)


def test_what_cannot_be_refined(model):
    for steps, size in [(0, 64), (2, 32), (2, 8)]:
        with pytest.raises(InputError):
            refine(model, random_image(1), random_image(2), steps=steps, size=size)
