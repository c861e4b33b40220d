import pytest
import torch

from splice_ff.losses import SpliceLoss, identity_loss
from splice_ff.vit.features import ViTFeatures, self_similarity
from splice_ff.vit.inputs import PUBLISHED, ViTInput
from splice_ff.vit.spec import BackboneSpec, LossWeights

NAMES = ("structure", "appearance", "identity")


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours, reference):
    assert ours.shape == reference.shape
    return ((ours - reference).norm() / reference.norm()).item()


@pytest.fixture
def tiny_loss(tiny_backbone):
    """Losses in a 3-layer ViT, which sees images with a shorter side of 48 pixels."""
    return SpliceLoss(tiny_backbone(), vit_input=ViTInput(48))


@pytest.fixture
def passes(tiny_loss):
    """Shapes of the batches that the ViT of `tiny_loss` saw."""
    shapes = []
    tiny_loss.backbone.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def golden_losses(backbone, golden_image):
    """Losses of the golden images, and the two images that they depend on."""
    loss = SpliceLoss(backbone, vit_input=PUBLISHED)
    structure, appearance, output, identity = (
        golden_image(f"loss.{name}_image") for name in ("structure", "appearance", "output", "identity")
    )
    output.requires_grad_()
    identity.requires_grad_()
    losses = loss(output, *loss.targets(structure, appearance), identity)
    return losses, output, identity


# ---------------------------------------------------------------------------------- the original code's numbers


def test_losses_and_gradients_are_the_original_codes(golden, golden_backbone, golden_image):
    losses, output, identity = golden_losses(golden_backbone, golden_image)
    for name in NAMES:
        value = getattr(losses, name)
        assert value.item() == pytest.approx(golden[f"loss.{name}"].item(), rel=1e-4), name
        image = identity if name == "identity" else output
        (gradient,) = torch.autograd.grad(value, image, retain_graph=True)
        assert relative_error(gradient[0], golden[f"loss.{name}_grad"]) < 1e-3, name
    expected = sum(w * golden[f"loss.{name}"].item() for name, w in zip(NAMES, (1, 10, 1), strict=True))
    assert losses.total.item() == pytest.approx(expected, rel=1e-4)


def test_bfloat16_is_close(golden, golden_backbone, golden_image):
    """The structure loss is a small difference of numbers near 1: computed in bfloat16 to the end it is lost."""
    twin = golden_backbone.with_matmuls_in(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses, _, _ = golden_losses(twin, golden_image)
    for name in NAMES:
        value = getattr(losses, name)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(golden[f"loss.{name}"].item(), rel=0.05), name
        assert value.item() != pytest.approx(golden[f"loss.{name}"].item(), rel=1e-5)  # bfloat16 it was


# ------------------------------------------------------------------------------------------------------- values


def test_identical_images_lose_nothing(tiny_loss):
    one, other = images(1, 3, 60, 72), images(1, 3, 60, 72, seed=1)
    structure, appearance = tiny_loss.targets(one, one)
    losses = tiny_loss(one, structure, appearance, one)
    assert all(losses.floats()[name] == pytest.approx(0, abs=1e-9) for name in (*NAMES, "total"))
    losses = tiny_loss(other, structure, appearance, other)
    assert all(losses.floats()[name] > 1e-4 for name in (*NAMES, "total"))


def test_losses_by_hand(tiny_loss):
    """Images of three sizes, each passed through the ViT alone, compared by plain arithmetic."""
    output, structure = images(1, 3, 60, 72), images(1, 3, 60, 72, seed=1)
    appearance, identity = images(1, 3, 90, 50, seed=2), images(1, 3, 90, 50, seed=3)
    losses = tiny_loss(output, *tiny_loss.targets(structure, appearance), identity)

    def features(image):
        found = tiny_loss.backbone(ViTInput(48).resize(image, (8, 8)), cls=True, keys=[2])
        return found.cls[:, 2], found.keys[2]

    cls, keys = features(output)
    appearance_cls, appearance_keys = features(appearance)
    expected = (
        (self_similarity(keys) - self_similarity(features(structure)[1])).square().mean(),
        (cls - appearance_cls).square().mean(),
        (features(identity)[1] - appearance_keys).square().mean(),
    )
    for name, value in zip(NAMES, expected, strict=True):
        assert getattr(losses, name).item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("same_size", [True, False])
def test_a_batch_has_the_mean_of_its_samples_losses(tiny_loss, same_size):
    output, structure = images(2, 3, 60, 72), images(2, 3, 60, 72, seed=1)
    other = (60, 72) if same_size else (80, 64)
    appearance, identity = images(2, 3, *other, seed=2), images(2, 3, *other, seed=3)
    batch = (output, structure, appearance, identity)

    def losses(output, structure, appearance, identity):
        return tiny_loss(output, *tiny_loss.targets(structure, appearance), identity).floats()

    together = losses(*batch)
    first, second = (losses(*(x[i : i + 1] for x in batch)) for i in (0, 1))
    for name, value in together.items():
        assert value == pytest.approx((first[name] + second[name]) / 2, rel=1e-5), name
        assert first[name] != pytest.approx(second[name], rel=1e-3)


def test_targets_are_in_the_order_of_their_images(tiny_loss):
    batches = [images(1, 3, 60, 72), images(2, 3, 72, 60, seed=1), images(1, 3, 60, 72, seed=2)]
    together = tiny_loss.targets(*batches)
    assert [len(target.cls) for target in together] == [1, 2, 1]
    for target, batch in zip(together, batches, strict=True):
        (alone,) = tiny_loss.targets(batch)
        assert relative_error(target.cls, alone.cls) < 1e-5
        assert relative_error(target.keys, alone.keys) < 1e-5


def test_without_identity_image(tiny_loss):
    output, structure, appearance = (images(1, 3, 60, 72, seed=i) for i in range(3))
    targets = tiny_loss.targets(structure, appearance)
    without, whole = tiny_loss(output, *targets), tiny_loss(output, *targets, images(1, 3, 60, 72, seed=3))
    assert without.identity.item() == 0 < whole.identity.item()
    assert without.total.item() == pytest.approx(whole.total.item() - whole.identity.item(), rel=1e-5)
    assert without.structure.item() == pytest.approx(whole.structure.item(), rel=1e-5)


def test_identity_has_its_own_target_if_given(tiny_loss):
    """Of the whole appearance image, say, while the appearance loss looks at a crop."""
    output, structure, appearance, whole, identity = (images(1, 3, 48, 48, seed=i) for i in range(5))
    structure, appearance, whole = tiny_loss.targets(structure, appearance, whole)
    (made,) = tiny_loss.targets(identity)
    losses = tiny_loss(output, structure, appearance, identity, whole)
    assert losses.identity.item() == pytest.approx(identity_loss(made.keys, whole.keys).item(), rel=1e-5)
    assert losses.identity.item() != pytest.approx(identity_loss(made.keys, appearance.keys).item(), rel=1e-3)
    plain = tiny_loss(output, structure, appearance)
    assert losses.appearance.item() == pytest.approx(plain.appearance.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("weights", "scales", "factors"),
    [
        (None, None, (1, 10, 1)),
        (None, LossWeights(1, 1, 1), (1, 10, 1)),
        (None, LossWeights(2, 0.1, 5), (2, 1, 5)),
        (LossWeights(7, 11, 13), None, (7, 11, 13)),
        (LossWeights(7, 11, 13), LossWeights(2, 3, 5), (14, 33, 65)),
    ],
)
def test_weights_and_the_backbones_scales_multiply(tiny_vit, weights, scales, factors):
    spec = None if scales is None else BackboneSpec("tiny", loss_scales=scales)
    loss = SpliceLoss(ViTFeatures(tiny_vit(), spec=spec), weights, vit_input=ViTInput(48))
    plain = SpliceLoss(ViTFeatures(tiny_vit()), vit_input=ViTInput(48))
    output, structure, appearance, identity = (images(1, 3, 48, 48, seed=i) for i in range(4))
    losses = loss(output, *loss.targets(structure, appearance), identity)
    unscaled = plain(output, *plain.targets(structure, appearance), identity)
    for name in NAMES:  # the parts are reported as they are
        assert getattr(losses, name).item() == pytest.approx(getattr(unscaled, name).item(), rel=1e-5)
    expected = sum(f * getattr(unscaled, name).item() for f, name in zip(factors, NAMES, strict=True))
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)


def test_floats_are_the_losses(tiny_loss):
    output, structure, appearance, identity = (images(1, 3, 48, 48, seed=i) for i in range(4))
    losses = tiny_loss(output, *tiny_loss.targets(structure, appearance), identity)
    floats = losses.floats()
    assert floats.keys() == {"total", *NAMES} and all(type(value) is float for value in floats.values())
    assert all(value == getattr(losses, name).item() for name, value in floats.items())
    assert len(set(floats.values())) == 4


# ---------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("other", [(60, 72), (64, 64)])
def test_gradients_reach_output_and_identity_only(tiny_loss, other):
    output, structure = (images(1, 3, 60, 72, seed=i).requires_grad_() for i in (0, 1))
    appearance, identity = (images(1, 3, *other, seed=i).requires_grad_() for i in (2, 3))
    targets = tiny_loss.targets(structure, appearance)
    assert not any(t.requires_grad for target in targets for t in (target.keys, target.cls))
    losses = tiny_loss(output, *targets, identity)

    def reached(value):
        gradients = torch.autograd.grad(value, (output, identity), retain_graph=True, allow_unused=True)
        return [g is not None and bool(g.abs().max() > 0) for g in gradients]

    assert reached(losses.structure) == [True, False]
    assert reached(losses.appearance) == [True, False]
    assert reached(losses.identity) == [False, True]
    losses.total.backward()
    assert output.grad.abs().max() > 0 and identity.grad.abs().max() > 0
    assert structure.grad is None and appearance.grad is None
    assert all(p.grad is None for p in tiny_loss.backbone.parameters())


# ------------------------------------------------------------------------------------------ what the ViT gets to see


def test_output_and_identity_of_one_size_share_a_pass(tiny_loss, passes):
    output, structure, appearance, identity = (images(2, 3, 60, 72, seed=i) for i in range(4))
    targets = tiny_loss.targets(structure, appearance)
    assert passes == [(4, 3, 48, 56)]
    passes.clear()
    tiny_loss(output, *targets, identity)
    assert passes == [(4, 3, 48, 56)]


def test_images_of_two_sizes_take_two_passes(tiny_loss, passes):
    targets = tiny_loss.targets(images(1, 3, 60, 72), images(1, 3, 90, 60, seed=1))
    assert passes == [(1, 3, 48, 56), (1, 3, 72, 48)]
    passes.clear()
    tiny_loss(images(1, 3, 60, 72, seed=2), *targets, images(1, 3, 90, 60, seed=3))
    assert passes == [(1, 3, 48, 56), (1, 3, 72, 48)]


def test_sizes_that_resize_to_one_share_a_pass(tiny_loss, passes):
    tiny_loss.targets(images(1, 3, 60, 60), images(1, 3, 96, 96, seed=1))
    assert passes == [(2, 3, 48, 48)]
