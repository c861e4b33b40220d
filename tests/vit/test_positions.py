"""Position embeddings on other grids than their own, as each family's authors interpolate them.

The expected values come from the definition of bicubic interpolation, written out here for one axis after the other.
"""

import numpy as np
import pytest
import torch
from support.feature_checks import assert_same, images
from support.tiny_vit import make_vit

from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import BACKBONES, BackboneSpec

NATIVE = 6
"""Patches a side: 48 pixels, patches of 8."""
DINO, DINOV2_REG = BACKBONES["dino_vits8"], BACKBONES["dinov2_vits14_reg"]


def cubic(x, a):
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def weights_as_dino(count):
    """(count, NATIVE): 0.1 is added to the count for the scale; samples outside repeat the border."""
    scale = NATIVE / (count + 0.1)
    matrix = np.zeros((count, NATIVE))
    for i in range(count):
        place = (i + 0.5) * scale - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[i, min(max(tap, 0), NATIVE - 1)] += cubic(place - tap, -0.75)
    return matrix


def weights_as_dinov2_with_registers(count):
    """(count, NATIVE): the exact scale; where patches get fewer, the kernel is wider (antialiasing)."""
    scale = NATIVE / count
    places, taps = (np.arange(count)[:, None] + 0.5) * scale, np.arange(NATIVE) + 0.5
    matrix = cubic((taps - places) / max(scale, 1), -0.5)
    return matrix / matrix.sum(1, keepdims=True)


def interpolated(vit, prefix, grid, weights):
    """What `pos_embed` of a ViT for that grid should be."""
    patches = vit.pos_embed[0, prefix:].detach().double().numpy().reshape(NATIVE, NATIVE, -1)
    patches = np.einsum("ij,jkd->ikd", weights(grid[0]), patches)
    patches = np.einsum("ij,kjd->kid", weights(grid[1]), patches)
    patches = torch.from_numpy(patches).float().reshape(1, grid[0] * grid[1], -1)
    return torch.cat([vit.pos_embed[:, :prefix].detach(), patches], 1)


def reference(vit, grid, weights, **changes):
    """The same ViT with embeddings made for that grid, which it takes as they are."""
    native = make_vit(img_size=(8 * grid[0], 8 * grid[1]), **changes)
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    state = vit.state_dict() | {"pos_embed": interpolated(vit, prefix, grid, weights)}
    native.load_state_dict(state)
    return ViTFeatures(native)


FAMILIES = [
    (None, {}, weights_as_dino),
    (DINO, {}, weights_as_dino),
    (DINOV2_REG, {"reg_tokens": 4, "no_embed_class": True}, weights_as_dinov2_with_registers),
]


@pytest.mark.parametrize("grid", [(6, 8), (3, 4), (13, 5), (1, 2)])
@pytest.mark.parametrize(("spec", "changes", "weights"), FAMILIES, ids=["by hand", "dino", "dinov2 with registers"])
def test_other_grids(spec, changes, weights, grid):
    vit = make_vit(**changes)
    image = images(2, 3, 8 * grid[0], 8 * grid[1])
    expected = reference(vit, grid, weights, **changes)(image, cls=True, tokens=[0, -1], keys=[0])
    assert_same(ViTFeatures(vit, spec=spec)(image, cls=True, tokens=[0, -1], keys=[0]), expected, tolerance=1e-4)


@pytest.mark.parametrize("pixels", [(48, 52), (50, 48), (49, 55)])
def test_the_native_grid_of_an_image_that_is_not_square_is_interpolated_too(pixels):
    """DINO asks whether the image is square, not the grid: 224 x 228 has the native 28 x 28 patches of 8."""
    vit, image = make_vit(), images(1, 3, *pixels)
    features = ViTFeatures(vit, spec=DINO)(image, cls=True, keys=[-1])
    cropped = image[..., :48, :48]
    expected = reference(vit, (6, 6), weights_as_dino)(cropped, cls=True, keys=[-1])
    assert_same(features, expected, tolerance=1e-4)
    with pytest.raises(AssertionError):
        assert_same(features, ViTFeatures(vit)(cropped, cls=True, keys=[-1]), tolerance=1e-3)


@pytest.mark.parametrize("pixels", [(48, 48), (49, 49), (55, 55)])
def test_square_images_of_the_native_grid_keep_the_native_embeddings(pixels):
    vit, image = make_vit(), images(1, 3, *pixels)
    expected = reference(vit, (6, 6), lambda count: np.eye(count))(image[..., :48, :48], cls=True, keys=[-1])
    assert_same(ViTFeatures(vit, spec=DINO)(image, cls=True, keys=[-1]), expected, tolerance=1e-6)


def test_a_native_grid_that_is_not_square():
    vit = make_vit(img_size=(48, 64))
    backbone, other = ViTFeatures(vit), ViTFeatures(make_vit(img_size=(48, 64)))
    other.spec = BackboneSpec.of("vit_small_patch14_reg4_dinov2.lvd142m")  # interpolates otherwise, or not at all
    image = images(1, 3, 48, 64)
    assert_same(backbone(image, cls=True), other(image, cls=True), tolerance=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dino_vitb8", (0.1, False)),
        ("dinov2_vitb14", (0.1, False)),
        ("dinov2_vitb14_reg", (0.0, True)),
        ("vit_small_patch14_reg4_dinov2.lvd142m", (0.0, True)),
        ("vit_large_patch14_reg4_dinov2", (0.0, True)),
        ("vit_large_patch14_dinov2.lvd142m", (0.1, False)),
    ],
)
def test_how_is_data(name, expected):
    positions = (BACKBONES.get(name) or BackboneSpec.of(name)).positions
    assert (positions.offset, positions.antialias) == expected
