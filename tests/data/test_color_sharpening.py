"""Contrasts of colors of small files: how much WebP takes and the mask gives back, and what stays as it is."""

from io import BytesIO
from pathlib import Path

import torch
from datasets import Dataset, Features, Image
from PIL import Image as PillowImage
from torchvision.transforms.v2 import functional as TF

from splice_ff.data.color_sharpening import sharpen_colors
from splice_ff.data.decoding import square_crop
from splice_ff.data.image_dataset import ImageRows, preload
from splice_ff.utils.color import LUMA, rgb_to_lab

EXAMPLES = Path(__file__).parents[2] / "examples"
SIDE = 160


def small(name):
    with PillowImage.open(EXAMPLES / name) as image:
        return TF.resize(TF.pil_to_tensor(image.convert("RGB")), [SIDE], antialias=True)


def saved(image):
    file = BytesIO()
    TF.to_pil_image(image).save(file, "WEBP", quality=75)
    return TF.pil_to_tensor(PillowImage.open(file).convert("RGB"))


def contrasts(image):
    """Mean absolute fine detail of L*, a* and b*."""
    lab = rgb_to_lab(image[None] / 255)
    return (lab - TF.gaussian_blur(lab, [7, 7], [1.4, 1.4])).abs().mean((0, 2, 3))


def test_it_gives_back_what_webp_took_and_leaves_lightness():
    ratios = []
    for name in ("cow.jpg", "red-panda.jpg", "hawa-mahal.jpg", "horse.jpg"):
        full, kept = small(name), saved(small(name))
        ratios.append(torch.stack([contrasts(x) / contrasts(full) for x in (kept, sharpen_colors(kept, 1.0))]))
    (_, *lost), (lightness, *back) = torch.stack(ratios).mean(0).tolist()
    assert max(lost) < 0.75
    assert all(0.85 < ratio < 1.35 for ratio in back)
    assert 0.93 < lightness < 1.03


def test_gray_images_and_luma_stay():
    gray = torch.randint(256, (1, 40, 50), dtype=torch.uint8).expand(3, -1, -1)
    assert torch.equal(sharpen_colors(gray, 1), gray)
    image = torch.randint(100, 156, (3, 40, 50), dtype=torch.uint8)
    before, after = (
        torch.einsum("c,cyx->yx", torch.tensor(LUMA), x.float()) for x in (image, sharpen_colors(image, 1))
    )
    assert (before - after).abs().max() <= 1


def test_rows_and_preloaded_images_have_it():
    image = {"path": str(EXAMPLES / "cow.jpg"), "bytes": None}
    data = Dataset.from_dict({"image": [image] * 2}, features=Features({"image": Image(decode=False)}))
    plain, sharp = ImageRows(data, SIDE), ImageRows(data, SIDE, color_sharpening=2.0)
    assert not torch.equal(sharp[1], plain[1])
    assert torch.equal(sharp[1], sharpen_colors(plain[1], 2.0))
    assert torch.equal(preload(sharp, quiet=True)[1], square_crop(sharp[1], SIDE))
