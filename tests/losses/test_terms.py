"""What all terms share: their weights in training and in recipes, their curves, half precision, and gradients."""

import pytest
import torch
import torch.nn.functional as F
from support.training_setup import log_lines, read_config, write_run

from splice_ff import InputError
from splice_ff.losses.splice import encode
from splice_ff.losses.style import style_layers
from splice_ff.losses.terms import TERMS, Painted, check_terms, weighted_terms
from splice_ff.per_pair.optimizer import PairOptimizer
from splice_ff.per_pair.recipes import PRESETS, REFINE, make_recipe
from splice_ff.training.trainer import Trainer
from splice_ff.utils.seeding import seeded_generator
from splice_ff.vit.inputs import ViTInput

each_term = pytest.mark.parametrize("term", TERMS)


def photo(seed, height=64, width=64):
    small = torch.rand(1, 3, 8, 8, generator=seeded_generator(seed))
    return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


@pytest.fixture
def painted(tiny_backbone):
    """Of an output, a structure and an appearance image."""
    backbone = tiny_backbone()
    layers = style_layers(backbone.depth)

    def make(output, structure, appearance):
        seen, look = encode(backbone, ViTInput(48), [output, appearance], layers)
        return Painted(output, structure, appearance, seen, look)

    return make


class Spots(torch.nn.Module):
    """A generator that adds spots to every image: edges, colors, blobs and another style."""

    def __init__(self):
        super().__init__()
        self.spots = torch.nn.Parameter(0.3 * torch.randn(1, 3, 10, 10, generator=seeded_generator(0)))

    def forward(self, images):
        return (images + F.interpolate(self.spots, images.shape[-2:])).clamp(0, 1)


def per_pair(backbone, term, weight):
    recipe = make_recipe("fast", size=80, steps=3, backbone=backbone.name, precision="fp32", terms={term: weight})
    return PairOptimizer(photo(1, 80, 80), photo(2, 80, 96), backbone, recipe, generator=Spots())


@each_term
def test_half_precision_does_not_round_it(painted, term):
    images = painted(photo(0), photo(1), photo(2))
    expected = TERMS[term](images)
    with torch.autocast("cpu", torch.bfloat16):
        assert TERMS[term](images).item() == expected.item() > 0


@each_term
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_are_finite_on_flat_images(painted, term, value):
    flat = torch.full((1, 3, 64, 64), value)
    for output, other in ((flat, photo(1)), (photo(1), flat), (flat, flat)):
        output = output.clone().requires_grad_()
        TERMS[term](painted(output, other, other)).backward()
        assert output.grad.isfinite().all()


@each_term
def test_a_step_of_a_recipe_takes_it_with_its_weight(tiny_backbone, term):
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        optimizer = per_pair(tiny_backbone(), term, weight)
        optimizer.adam.step = optimizer.adam.zero_grad = lambda: None
        optimizer.step()
        gradients[weight] = optimizer.generator.spots.grad.clone()
    added = gradients[1.0] - gradients[0.0]
    assert added.abs().max() > 0
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * added, rtol=1e-3, atol=1e-6)


@each_term
def test_it_helps_to_choose_the_best_image(tiny_backbone, term):
    added = []
    for weight in (1.0, 3.0):
        _, losses, objective = per_pair(tiny_backbone(), term, weight)._whole_image()
        added.append(objective - losses["total"])
    assert added[0] > 0 and added[1] == pytest.approx(3 * added[0], rel=1e-2)


@each_term
def test_training_takes_it_with_its_weight_and_logs_it_by_name(tmp_path, vit_state, term):
    config = read_config(write_run(tmp_path, vit_state), f"loss.terms.{term}=0.5", "loss.crop=1", "optimizer.steps=1")
    trainer = Trainer(config, quiet=True)
    with torch.no_grad():
        trainer.generator.unet.to_rgb[-1].weight.normal_(std=0.3, generator=seeded_generator(0))
    batch = next(trainer.data.batches(0))
    _, terms = trainer.losses(batch)
    assert list(terms) == [term] and terms[term].item() > 0
    images = torch.cat([batch.first, batch.second])
    encoding, target = trainer.pair_losses.encode_images(images)
    count = len(batch.first)
    output = trainer.generator(images, encoding.structure_features, encoding.cls.roll(count, 0))
    (seen,) = trainer.pair_losses.encode(output)
    expected = TERMS[term](Painted(output, images, images.roll(count, 0), seen, target.roll(count)))
    assert terms[term].item() == pytest.approx(0.5 * expected.item(), rel=1e-3)
    trainer.run()
    line = log_lines(trainer.config.output)[1]
    parts = line["structure"], 10 * line["appearance"], line["identity"], line[term]
    assert line["total"] == pytest.approx(sum(parts), rel=1e-3)


def test_terms_without_weight_are_not_computed(painted):
    images = painted(photo(0), photo(1), photo(2))
    assert list(weighted_terms({"color": 2.0, "edges": 0.0}, images)) == ["color"]


def test_presets_follow_the_paper_and_refining_takes_terms():
    assert [recipe.terms for recipe in PRESETS.values()] == [{}, {}]
    assert REFINE.terms.keys() == {"style", "color", "edges", "polarity"}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"sytle": 1}, "unknown term 'sytle'. Known: style"),
        ({"style": -1.0}, "at least 0"),
        ({"color": float("nan")}, "at least 0"),
    ],
)
def test_unknown_terms_and_weights_are_refused(tiny_backbone, tmp_path, vit_state, terms, message):
    with pytest.raises(InputError, match=message):
        check_terms(terms)
    (name, weight), backbone = next(iter(terms.items())), tiny_backbone()
    with pytest.raises(InputError, match=message):
        PairOptimizer(photo(0, 80, 80), photo(1, 80, 80), backbone, make_recipe("fast", size=80, terms=terms))
    if weight == weight:  # settings hold no NaN at all
        with pytest.raises(InputError, match=message):
            read_config(write_run(tmp_path, vit_state), f"loss.terms.{name}={weight}")
