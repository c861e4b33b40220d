"""Per-pair optimization on a backbone small enough for seconds."""

import warnings

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from splice_ff import DivergedError, InputError, PairOptimizer, ViTFeatures, optimize_pair
from splice_ff.errors import CheckpointError
from splice_ff.per_pair.generator_file import load_generator, save_generator
from splice_ff.per_pair.optimize import apply_generator
from splice_ff.per_pair.optimizer import EVALUATE_EVERY
from splice_ff.per_pair.recipes import make_recipe


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return ViTFeatures(VisionTransformer(img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0))


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate
    return smooth(torch.rand(1, 3, 6, 8), (66, 88), mode="bicubic").clamp(0, 1), smooth(
        torch.rand(1, 3, 5, 5), (70, 70), mode="bicubic"
    ).clamp(0, 1)


def start(pair, backbone, preset="fast", seed=0, **changes):
    changes = {"steps": 6, "size": 64, "precision": "fp32"} | changes
    return PairOptimizer(*pair, backbone, make_recipe(preset, **changes), seed=seed)


def run(optimizer, steps=None):
    losses = []
    while not optimizer.done and (steps is None or len(losses) < steps):
        losses.append(optimizer.step().floats())
    return losses


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_losses_fall(pair, backbone, preset):
    optimizer = start(pair, backbone, preset, steps=40, patience=0)
    losses = run(optimizer)
    assert len(losses) == 40
    untrained = start(pair, backbone, preset, copy_steps=0).result().losses["total"]
    assert optimizer.result().losses["total"] < 0.5 * untrained


def test_output_has_the_structure_images_size_and_range(pair, backbone):
    result = optimize_pair(*pair, backbone=backbone, steps=1, size=64, device="cpu", output_type="pt")
    assert result.image.shape == pair[0].shape
    assert result.image.min() >= 0 and result.image.max() <= 1


def test_a_seed_repeats_a_run_and_leaves_the_global_one(pair, backbone):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = optimize_pair(
        *pair, backbone=backbone, steps=3, size=64, seed=3, precision="fp32", device="cpu", output_type="pt"
    )
    assert torch.rand(1) == expected
    again = optimize_pair(
        *pair, backbone=backbone, steps=3, size=64, seed=3, precision="fp32", device="cpu", output_type="pt"
    )
    other = optimize_pair(
        *pair, backbone=backbone, steps=3, size=64, seed=4, precision="fp32", device="cpu", output_type="pt"
    )
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_a_resumed_run_continues_as_an_unbroken_one(pair, backbone, preset, tmp_path):
    whole = start(pair, backbone, preset, steps=30)
    expected = run(whole)
    first = start(pair, backbone, preset, steps=30)
    run(first, 27)  # past an evaluation, so that a best image is saved too
    first.save(tmp_path / "run.pt")
    second = start(pair, backbone, preset, steps=30)
    second.load(tmp_path / "run.pt")
    assert second.step_count == 27
    assert run(second) == expected[27:]
    assert torch.equal(second.result().image, whole.result().image)
    assert second.result().losses == whole.result().losses


def test_a_state_of_another_run_is_refused(pair, backbone, tmp_path):
    start(pair, backbone).save(tmp_path / "run.pt")
    with pytest.raises(InputError, match="seed"):
        start(pair, backbone, seed=1).load(tmp_path / "run.pt")
    with pytest.raises(InputError, match="images"):
        start((pair[1], pair[0]), backbone).load(tmp_path / "run.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match=r"text\.pt: not a saved state"):
        start(pair, backbone).load(tmp_path / "text.pt")


def test_best_image_is_kept_when_later_ones_are_worse(pair, backbone):
    optimizer = start(pair, backbone, steps=60, ema_decay=0.0, cosine=False, patience=0)
    run(optimizer, EVALUATE_EVERY)
    best = optimizer.result()
    with torch.no_grad():
        for p in optimizer.generator.parameters():
            p.zero_()
    run(optimizer, EVALUATE_EVERY)
    assert optimizer.result().step == EVALUATE_EVERY
    assert torch.equal(optimizer.result().image, best.image)


def test_nan_stops_with_the_last_good_image(pair, backbone):
    optimizer = start(pair, backbone, steps=60, ema_decay=0.0)
    run(optimizer, EVALUATE_EVERY)
    with torch.no_grad():
        optimizer.generator.to_rgb.bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match=f"step {EVALUATE_EVERY + 1}"):
        optimizer.step()
    assert optimizer.result().image.isfinite().all()


def test_weights_that_were_never_finite_make_no_image(pair, backbone):
    optimizer = start(pair, backbone, ema_decay=0.0, copy_steps=0)
    with torch.no_grad():
        optimizer.generator.to_rgb.bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match="no image"):
        optimizer.result()


def test_stops_early_when_the_losses_stall(pair, backbone):
    optimizer = start(pair, backbone, steps=500, patience=2, learning_rate=1e-12)
    run(optimizer)
    assert optimizer.step_count <= 4 * EVALUATE_EVERY


def test_fast_encodes_its_targets_once_and_paper_at_every_step(pair, backbone, monkeypatch):
    passes = []
    forward = ViTFeatures.forward
    monkeypatch.setattr(ViTFeatures, "forward", lambda self, x, **kw: passes.append(len(x)) or forward(self, x, **kw))
    fast = start(pair, backbone, "fast")
    for step, images in (
        (1, 2),
        (2, 3),
    ):  # output and structure under a similarity, and at every other step the identity
        fast.step_count, passes[:] = step, []
        fast.step()
        assert sum(passes) == images
    paper = start(pair, backbone, "paper")
    paper.step_count = 1
    passes.clear()
    paper.step()
    assert sum(passes) == 4  # and their two targets


def test_the_identity_loss_can_be_left_out(pair, backbone, monkeypatch):
    optimizer = start(pair, backbone, "fast", identity_every=0)
    passes = []
    forward = ViTFeatures.forward
    monkeypatch.setattr(ViTFeatures, "forward", lambda self, x, **kw: passes.append(len(x)) or forward(self, x, **kw))
    for step in (0, 1, 2):
        optimizer.step_count, passes[:] = step, []
        assert optimizer.step().identity.item() == 0
        assert sum(passes) == 2  # output and structure
    optimizer._evaluate()
    assert optimizer.best_losses["identity"] == 0 < optimizer.best_losses["total"]


def test_paper_adds_the_whole_image_every_75th_step(pair, backbone, monkeypatch):
    sizes = []
    optimizer = start(pair, backbone, "paper", steps=100)
    generate = optimizer.generate
    monkeypatch.setattr(optimizer, "generate", lambda x: sizes.append(tuple(x.shape[-2:])) or generate(x))
    whole = tuple(optimizer.structure.shape[-2:])
    for step, count in ((0, 3), (1, 2), (74, 2), (75, 3)):
        optimizer.step_count, sizes[:] = step, []
        optimizer.step()
        assert len(sizes) == count and (whole in sizes) == (count == 3)


def test_copying_first_teaches_the_generator_its_input(pair, backbone):
    optimizer = start(pair, backbone, copy_steps=200, learning_rate=1e-12)
    optimizer.step()
    error = torch.nn.functional.mse_loss(optimizer.generator(optimizer.structure), optimizer.structure)
    assert error < 0.1 * optimizer.structure.var()


def test_bfloat16_starts_and_lands_near_float32(pair, backbone):
    curves = {p: run(start(pair, backbone, precision=p, steps=20, copy_steps=0)) for p in ("fp32", "bf16")}
    first, last = ({p: curve[i]["total"] for p, curve in curves.items()} for i in (0, -1))
    assert first["bf16"] == pytest.approx(first["fp32"], rel=0.02)
    # rounding sends the runs along different ways: both must have come down, not meet
    assert max(last.values()) < 0.6 * min(first.values())


def test_refined_generator_trains(pair, backbone):
    assert optimize_pair(*pair, backbone=backbone, steps=2, size=64, generator="refined", device="cpu").step == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be from 1"),
        ({"steps": 10**12}, "steps must be from 1"),
        ({"size": 10**9}, "megapixels"),
        ({"size": 7}, "size must be at least 64"),
        ({"generator": "big"}, "unknown generator 'big'"),
        ({"preset": "slow"}, "unknown preset 'slow'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_impossible_settings_are_named(pair, backbone, change, message):
    with pytest.raises(InputError, match=message):
        optimize_pair(*pair, backbone=backbone, **change)


def test_paper_at_the_images_own_size_refuses_tiny_ones(backbone):
    small = torch.rand(2, 1, 3, 40, 40)
    with pytest.raises(InputError, match=r"40x40 .* give a size"):
        optimize_pair(*small, backbone=backbone, preset="paper")


def test_the_stand_in_is_announced(pair, monkeypatch):
    from splice_ff.vit import weights

    def unreachable(spec):
        raise weights.HubError("no network")

    monkeypatch.setattr(weights, "_read_from_hub", unreachable)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = optimize_pair(*pair, steps=1, size=64, device="cpu")
    assert any("not DINO" in str(w.message) for w in caught)
    assert result.settings["backbone"] == "vit_s14_robust"
    with pytest.raises(InputError, match="no network"):  # asked for by name: no stand-in
        optimize_pair(*pair, backbone="dino_vits16", steps=1, size=64)


def test_generator_file_round_trip(pair, backbone, tmp_path):
    result = optimize_pair(
        *pair, backbone=backbone, steps=2, size=64, generator="refined", device="cpu", output_type="pt"
    )
    save_generator(result.generator, result.settings, tmp_path / "g.safetensors")
    generator, settings = load_generator(tmp_path / "g.safetensors")
    assert settings == result.settings
    torch.testing.assert_close(apply_generator(generator, pair[0], 64), result.image)


def test_damaged_generator_files_are_named(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("missing", "text", "other"):
        with pytest.raises(CheckpointError, match=name):
            load_generator(tmp_path / f"{name}.safetensors")


def test_a_similarity_changes_output_and_structure_alike(pair, backbone):
    optimizer = start(pair, backbone, "fast")
    structure, appearance = optimizer._draw_views()
    images = structure.images
    same, other, again = (
        optimizer._compare(output, structure, appearance, [])[0] for output in (images, images.flip(-2), images)
    )
    assert same.structure < 1e-6 and same.identity == 0
    assert other.structure > 1e-4 and not torch.equal(same.appearance, again.appearance)


def test_steps_inside_a_callers_autocast_are_the_same(pair, backbone):
    plain = run(start(pair, backbone, precision="bf16"))
    with torch.autocast("cpu", enabled=False):  # an outer context keeps the cache of cast weights
        inside = run(start(pair, backbone, precision="bf16"))
    assert inside == plain and inside[0] != inside[-1]


@pytest.mark.parametrize("similarity", [False, True])
def test_the_structure_loss_counts_as_much_as_the_recipe_says(pair, backbone, similarity):
    losses = {
        weight: start(pair, backbone, similarity=similarity, structure_weight=weight).step().floats()
        for weight in (1.0, 3.0)
    }
    assert losses[1.0]["structure"] == losses[3.0]["structure"] > 0
    assert losses[3.0]["total"] - losses[1.0]["total"] == pytest.approx(2 * losses[1.0]["structure"], rel=1e-3)
