"""The numbers behind `splice-ff explain` are the losses'."""

import pytest
import torch

from splice_ff.analysis.explain import explain
from splice_ff.errors import InputError
from splice_ff.losses import structure_loss


def noise(seed=0, height=224, width=224):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def backbone(tiny_backbone):
    return tiny_backbone(img_size=64, patch_size=32)  # 7 x 7 patches


def test_the_map_means_the_structure_loss(backbone):
    structure, output = noise(0), noise(1)
    found = explain(backbone, structure, noise(2), output)
    keys = backbone(torch.cat([structure, output]), keys=[-1]).keys[2]
    assert found.structure_loss == pytest.approx(structure_loss(keys[1:], keys[:1]).item(), rel=1e-4)
    assert found.structure_map.shape == (7, 7)
    assert found.structure_map.mean() == pytest.approx(found.structure_loss, rel=0.3)  # without the [CLS] token's row


def test_the_map_is_bright_where_the_output_was_changed(backbone):
    structure = noise()
    output = structure.clone()
    output[..., 32:64, 96:128] = 0
    places = explain(backbone, structure, noise(2), output).structure_map
    assert divmod(int(places.argmax()), 7) == (1, 3)


def test_distances_before_and_after(backbone):
    structure, appearance = noise(0), noise(1)
    copied = explain(backbone, structure, appearance, structure)
    assert copied.structure_map.max() < 1e-9
    assert copied.cls_distance.allclose(copied.cls_distance_before, atol=1e-6)
    assert copied.cls_distance.shape == (3,) and (copied.cls_distance > 1e-4).all()
    replaced = explain(backbone, structure, appearance, appearance)
    assert replaced.cls_distance.abs().max() < 1e-5


def test_an_output_of_another_shape_is_refused(backbone):
    with pytest.raises(InputError, match=r"300x224 pixels .*224x224"):
        explain(backbone, noise(), noise(1), noise(2, 224, 300))
    explain(backbone, noise(), noise(1, 100, 130), noise(2, 448, 448))  # another size is fine
