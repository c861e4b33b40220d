"""Colors under alpha 0 are no part of an image, whatever the file hides there."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import complaint

from splice_ff.images import load_image

HIDDEN = {"black": (0, 0, 0), "white": (255, 255, 255), "magenta": (255, 0, 255)}


def cutout(hidden, height=40, width=56):
    """A disc of a gradient on nothing: RGBA of 8 bits, with a soft border."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    rgba = np.empty((height, width, 4), np.uint8)
    rgba[..., 0], rgba[..., 1], rgba[..., 2] = 100 + rows, 50 + columns, 30
    rgba[..., 3] = (np.clip(15.5 - distance, 0, 1) * 255).astype(np.uint8)
    rgba[rgba[..., 3] == 0, :3] = hidden
    return rgba


def as_file(rgba, folder, suffix):
    Image.fromarray(rgba).save(folder / f"a{suffix}", lossless=True, exact=True)
    return folder / f"a{suffix}"


def as_palette(rgba, hidden, folder):
    image = Image.fromarray(rgba[..., :3]).quantize(200)
    indices = np.where(rgba[..., 3] == 0, 255, np.asarray(image).clip(0, 254)).astype(np.uint8)
    colors = (image.getpalette() + [0] * 768)[:765] + list(hidden)
    image = Image.fromarray(indices, "P")
    image.putpalette(colors)
    image.save(folder / "a.png", transparency=255)
    return folder / "a.png"


SOURCES = {
    "png": lambda rgba, folder: as_file(rgba, folder, ".png"),
    "webp": lambda rgba, folder: as_file(rgba, folder, ".webp"),
    "tiff": lambda rgba, folder: as_file(rgba, folder, ".tif"),
    "gray": lambda rgba, folder: Image.fromarray(rgba[..., (0, 3)].copy(), "LA"),
    "PIL": lambda rgba, folder: Image.fromarray(rgba),
    "array": lambda rgba, folder: rgba,
    "float array": lambda rgba, folder: rgba / 255,
    "tensor": lambda rgba, folder: torch.from_numpy(rgba).permute(2, 0, 1),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_same_cutout_is_the_same_image(tmp_path, source):
    images = [load_image(source(cutout(hidden), tmp_path)) for hidden in HIDDEN.values()]
    for other in images[1:]:
        assert torch.equal(other.rgb, images[0].rgb) and torch.equal(other.alpha, images[0].alpha)


def test_the_hidden_entry_of_a_palette_plays_no_part(tmp_path):
    rgba = cutout(HIDDEN["black"])
    images = [load_image(as_palette(rgba, hidden, tmp_path)).rgb for hidden in HIDDEN.values()]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_visible_colors_stay_and_the_others_continue_them():
    rgba = cutout(HIDDEN["white"])
    loaded = load_image(rgba)
    expected = torch.from_numpy(rgba).permute(2, 0, 1)[None].float() / 255
    visible = expected[0, 3] > 0
    assert torch.equal(loaded.rgb[0, :, visible], expected[0, :3, visible])
    seen = expected[0, :3, visible]
    assert (loaded.rgb[0].amin((1, 2)) >= seen.amin(1) - 1e-6).all() and (
        loaded.rgb[0].amax((1, 2)) <= seen.amax(1) + 1e-6
    ).all()
    across = loaded.rgb[0, :, 20].diff(dim=-1).abs()
    assert across.max() < 0.05  # no edge at the border of the disc


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (16, 500), (301, 16)])
def test_a_single_visible_pixel_colors_all(shape):
    rgba = np.zeros((*shape, 4), np.uint8)
    rgba[3, 4] = 200, 100, 50, 255
    loaded = load_image(rgba).rgb
    torch.testing.assert_close(loaded, (torch.tensor([200, 100, 50]) / 255).view(1, 3, 1, 1).expand_as(loaded))


def test_nothing_visible_is_an_error():
    assert "alpha is 0 everywhere" in complaint(load_image, np.zeros((20, 20, 4), np.uint8))
