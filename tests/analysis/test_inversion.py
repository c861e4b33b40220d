"""Feature inversion: nearer with every step, runs that do not mix, and stopping in between changes nothing."""

import pytest
import torch

from splice_ff.analysis.inversion import FeatureInversion, invert, noise_std
from splice_ff.analysis.recipes import InversionRecipe
from splice_ff.errors import DivergedError, InputError


def image(seed=0):
    return torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make(tiny_backbone):
    """A run on a tiny ViT: `make(feature, layers=[-1], seeds=[0], **recipe)`."""

    def run(feature="keys", layers=(-1,), seeds=(0,), target=None, **recipe):
        recipe = InversionRecipe(feature, **{"steps": 4, "size": 48} | recipe)
        target = image() if target is None else target
        return FeatureInversion(tiny_backbone(), target, recipe, layers=layers, seeds=seeds)

    return run


def finish(run):
    run.run()
    return run.result()


@pytest.mark.parametrize("prior", ["cnn", "pixels"])
@pytest.mark.parametrize("feature", ["cls", "keys", "self_similarity"])
def test_the_distance_falls(make, feature, prior):
    run = make(feature, prior=prior, steps=25, learning_rate=0.05 if prior == "pixels" else 0.01)
    (found,) = finish(run)
    assert found.image.shape == (3, 48, 64) and found.image.min() >= 0 and found.image.max() <= 1
    assert found.distance < 0.8 * found.start


def test_the_distance_is_that_of_the_features(make, tiny_backbone):
    for feature, pick in (
        ("cls", lambda f: f.tokens[1][:, 0]),
        ("keys", lambda f: f.keys[1]),
        ("self_similarity", lambda f: f.self_similarity(1)),
    ):
        run = make(feature, layers=[1])
        (found,) = run.result()
        ours, target = (tiny_backbone()(x, keys=[1], tokens=[1]) for x in (found.image[None], run.image))
        expected = (pick(ours) - pick(target)).square().mean().item()
        assert found.distance == pytest.approx(expected, rel=1e-4) and found.start == pytest.approx(expected, rel=1e-4)


def test_the_published_noise_in_proportion():
    published = [noise_std(step, 20_000) for step in (0, 9_999, 10_000, 14_999, 15_000, 19_999)]
    assert published == [10, 10, 2, 2, 0.5, 0.5]
    assert [noise_std(step, 4) for step in range(4)] == [10, 10, 2, 0.5]


def test_only_cls_gets_noise_at_each_step(make):
    for feature, fresh in (("cls", True), ("keys", False)):
        run = make(feature)
        before = run.random[0].get_state()
        run.step()
        assert run.random[0].get_state().equal(before) != fresh


def test_runs_do_not_influence_each_other(make):
    together = finish(make("cls", layers=[2, 0], seeds=[3, 5], steps=2))
    assert [(found.layer, found.seed) for found in together] == [(0, 3), (0, 5), (2, 3), (2, 5)]
    (alone,) = finish(make("cls", layers=[-1], seeds=[3], steps=2))
    assert together[2].image.allclose(alone.image, atol=1e-3)
    assert not together[2].image.allclose(together[3].image, atol=1e-2)


def test_one_pass_a_step_for_all_runs_and_one_for_the_target(make, monkeypatch):
    from splice_ff.vit.features import ViTFeatures

    batches, blocks, forward = [], [], ViTFeatures.forward
    monkeypatch.setattr(ViTFeatures, "forward", lambda s, x, **k: (batches.append(len(x)), forward(s, x, **k))[1])
    run = make("cls", layers=[0, 1], seeds=[0, 1, 2])
    assert batches == [1, 6]  # the target; the distances at the start
    run.backbone.vit.blocks[2].register_forward_hook(lambda *_: blocks.append(2))
    run.step()
    run.step()
    assert batches[2:] == [6, 6]
    assert not blocks  # it stops at the deepest layer needed


def test_stopping_in_between_changes_nothing(make, tmp_path):
    whole = finish(make("cls", seeds=[0, 1]))
    first = make("cls", seeds=[0, 1])
    first.step()
    first.step()
    first.save(tmp_path / "run.pt")
    second = make("cls", seeds=[0, 1])
    second.load(tmp_path / "run.pt")
    assert second.step_count == 2
    for ours, expected in zip(finish(second), whole, strict=True):
        assert ours.image.allclose(expected.image, atol=1e-6)


def test_a_state_of_another_run_is_refused(make, tmp_path):
    make().save(tmp_path / "run.pt")
    for other, word in ((make(target=image(1)), "image"), (make(seeds=[1]), "seeds"), (make("cls"), "feature")):
        with pytest.raises(InputError, match=word):
            other.load(tmp_path / "run.pt")
    (tmp_path / "bad.pt").write_bytes(b"no state")
    with pytest.raises(InputError, match=r"bad\.pt"):
        make().load(tmp_path / "bad.pt")


def test_nan_stops_the_run_and_keeps_the_image(make):
    run = make(prior="pixels")
    run.step()
    before = run.result()[0].image
    run.targets[2] = run.targets[2] * float("nan")
    with pytest.raises(DivergedError, match="step 2"):
        run.step()
    run.targets[2] = torch.zeros_like(run.targets[2])
    assert run.result()[0].image.equal(before)


def test_invert_is_the_whole_run(make, tiny_backbone):
    steps = []
    recipe = InversionRecipe("keys", steps=2, size=48)
    inversions = invert(
        tiny_backbone(), image(), recipe, layers=[0, -1], seeds=[4],
        on_step=lambda run, distances: steps.append((run.step_count, distances.shape)),
    )  # fmt: skip
    assert steps == [(1, (2,)), (2, (2,))]
    expected = finish(make(layers=[0, -1], seeds=[4], steps=2))
    assert [(i.layer, i.seed) for i in inversions] == [(0, 4), (2, 4)]
    assert all(i.image.equal(e.image) for i, e in zip(inversions, expected, strict=True))


@pytest.mark.parametrize("wrong", [{"feature": "values"}, {"prior": "gan"}, {"steps": 0}, {"size": 0}])
def test_wrong_recipes(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        InversionRecipe(**wrong)


def test_an_image_too_narrow_to_be_painted_is_refused(make):
    with pytest.raises(InputError, match="larger size"):
        make(target=torch.rand(1, 3, 16, 400))


def test_the_callers_random_numbers_are_left_alone(tiny_backbone):
    backbone = tiny_backbone()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    invert(backbone, image(), InversionRecipe("cls", steps=1, size=48))
    assert torch.rand(3).equal(expected)
