"""Per-pair steps from the one-shot answer: from it, downhill, and never back."""

import copy

import pytest
import torch
from support.one_shot_model import make_model, random_image

from splice_ff.errors import InputError
from splice_ff.one_shot.refine import DECODER, PairGenerator, refine, refiner


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Not timed: that takes seconds where bfloat16 is emulated."""
    monkeypatch.setattr("splice_ff.per_pair.optimizer.fastest_dtype", lambda device: torch.float32)


@pytest.fixture
def model(tiny_backbone):
    return make_model(tiny_backbone(patch_size=16))


def test_the_first_candidate_is_the_one_shot_image(model):
    structure, appearance = random_image(1, 80, 100), random_image(2, 90, 70)
    result = refiner(model, structure, appearance, steps=5).result()
    assert result.step == 0
    torch.testing.assert_close(result.image, model(structure, appearance, output_type="pt"), atol=1e-5, rtol=0)


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
    assert (run.preview() - model(structure, appearance, output_type="pt")).abs().max() > 0.01
    assert run.result().step == 0
    assert torch.equal(run.result().image, model(structure, appearance, output_type="pt"))


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
    assert generator.state_dict().keys() == {"appearance_tokens"} | {
        f"unet.{k}" for k in model.generator.unet.state_dict()
    }
    assert torch.equal(generator(random_image(1)), model(random_image(1), random_image(2), output_type="pt"))
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    image = random_image(3)
    assert torch.equal(generator(image), generator(image)) and len(passes) == 1


@pytest.mark.parametrize("size", ["tiny", "tiny-grid"])
def test_only_the_decoder_learns_and_the_encoder_sees_each_image_once(tiny_backbone, size):
    model = make_model(tiny_backbone(patch_size=16), generator=size)
    run, passes = refiner(model, random_image(1), random_image(2), steps=3), []
    before = {k: v.clone() for k, v in run.generator.state_dict().items()}
    run.generator.unet.stem.register_forward_hook(lambda *_: passes.append(1))
    while not run.done:
        run.step()
    changed = {k.split(".")[1] for k, v in run.generator.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == set(DECODER) - ({"guide"} if size == "tiny" else set())
    assert len(passes) == 1, "the structure image: without the identity loss the look is never repainted"


def test_maps_met_under_autocast_serve_in_float32_as_well(model):
    """As in a run that goes on from a saved state: its first image is a step's, not an evaluation's."""
    image = random_image(1)
    generator = PairGenerator(model, model.embed(random_image(2)))
    with torch.autocast("cpu", torch.bfloat16):
        generator(image)
    assert torch.equal(generator(image), model(image, random_image(2), output_type="pt"))


def test_the_state_says_all_of_the_image(tiny_backbone):
    backbone, image = tiny_backbone(patch_size=16), random_image(3)
    one, other = (PairGenerator(m, m.embed(random_image(2))) for m in (make_model(backbone), make_model(backbone, 1)))
    assert not torch.equal(one(image), other(image))
    restored = copy.deepcopy(other)
    restored.load_state_dict(one.state_dict())
    assert torch.equal(restored(image), one(image))


def test_what_cannot_be_refined(model):
    for steps, size in [(0, 64), (2, 32), (2, 8)]:
        with pytest.raises(InputError):
            refine(model, random_image(1), random_image(2), steps=steps, size=size)
