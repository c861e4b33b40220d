"""Loading a backbone and every analysis tool give the same, whatever the caller has set in torch."""

import pytest
import torch
from support.ambience import AMBIENCES

from splice_ff.analysis.attention import cls_attention
from splice_ff.analysis.correspondence import match, match_strength
from splice_ff.analysis.explain import explain
from splice_ff.analysis.inversion import invert
from splice_ff.analysis.pca import pca
from splice_ff.analysis.recipes import InversionRecipe
from splice_ff.vit.weights import load_backbone


def photo(seed):
    return torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(seed))


def everything(folder, a, b):
    """One tensor of each tool, by name."""
    backbone = load_backbone(str(folder))
    return {
        "fingerprint": backbone.fingerprint,
        "mean": backbone.mean,
        "pca": pca(backbone, [a, b], ["keys"], [-1], joint=True, mask=True, size=48)[0]["keys", 1],
        "attention": cls_attention(backbone, a, size=48),
        "match": match(backbone, a, b, size=48).similarity,
        "strength": match_strength(backbone, a, b).similarity,
        "explain": explain(backbone, a, b, b).structure_map,
        "invert": invert(backbone, a, InversionRecipe("cls", steps=2, size=48))[0].image,
    }


@pytest.mark.parametrize("ambience", AMBIENCES.values(), ids=AMBIENCES)
def test_the_callers_settings_play_no_part(vit_folder, ambience):
    a, b = photo(0), photo(1)
    expected = everything(vit_folder, a, b)
    with ambience():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        made = everything(vit_folder, a, b)
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()) == before
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert made[name].dtype == value.dtype and made[name].equal(value), name
        else:
            assert made[name] == value, name
