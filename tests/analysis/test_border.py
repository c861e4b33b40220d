"""What is not an image is refused by every analysis tool, by the name of its argument."""

import numpy as np
import pytest
import torch

from splice_ff.analysis.attention import cls_attention
from splice_ff.analysis.correspondence import match, match_strength
from splice_ff.analysis.explain import explain
from splice_ff.analysis.inversion import invert
from splice_ff.analysis.pca import pca
from splice_ff.analysis.recipes import InversionRecipe
from splice_ff.errors import ImageError

GOOD = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
TOOLS = {
    "images[1]": lambda vit, x: pca(vit, [GOOD, x], size=48),
    "images": lambda vit, x: cls_attention(vit, x, size=48),
    "b": lambda vit, x: match(vit, GOOD, x, size=48),
    "structure": lambda vit, x: match_strength(vit, x, GOOD),
    "output": lambda vit, x: explain(vit, GOOD, GOOD, x),
    "image": lambda vit, x: invert(vit, x, InversionRecipe(steps=1, size=48)),
}
BAD = {
    "0 to 255": GOOD * 255,
    "NaN": GOOD.where(GOOD > 0.5, torch.nan),
    "negative": GOOD - 0.5,
    "bytes": (GOOD * 255).byte(),
    "no batch": GOOD[0],
    "gray": GOOD[:, :1],
    "alpha": torch.rand(1, 4, 48, 64),
    "tiny": GOOD[..., :8, :8],
    "array": np.zeros((1, 3, 48, 64), np.float32),
    "path": "cat.png",
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_image_is_named(tiny_backbone, tool, bad):
    with pytest.raises(ImageError) as caught:
        TOOLS[tool](tiny_backbone(), BAD[bad])
    assert str(caught.value).startswith(f"{tool}:") and "\n" not in str(caught.value)


@pytest.mark.parametrize("tool", TOOLS)
def test_other_floats_and_subclasses_are_images_too(tiny_backbone, tool):
    for image in (GOOD.double(), GOOD.half(), GOOD.as_subclass(torch.nn.Parameter)):
        TOOLS[tool](tiny_backbone(), image)
