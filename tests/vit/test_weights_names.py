import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from splice_ff.errors import HubError, WeightsError
from splice_ff.vit import weights
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import BACKBONES, LossWeights
from splice_ff.vit.weights import load_backbone, load_default_backbone

ROOT = Path(__file__).parents[2]


def test_the_bundled_backbone():
    backbone = load_backbone("vit_mini")
    assert re.fullmatch("[0-9a-f]{64}", backbone.fingerprint)
    assert backbone.name == "vit_mini"
    config = json.loads((ROOT / "checkpoints" / "vit_mini" / "config.json").read_text())
    assert "loss_scales" in config
    defaults = {"structure": 1.0, "appearance": 1.0, "identity": 1.0}
    assert backbone.spec.loss_scales == LossWeights(**defaults | config["loss_scales"])
    found = backbone(torch.rand(1, 3, 64, 48), cls=True, keys=[-1])
    assert found.cls.shape == (1, config["depth"], config["embed_dim"])
    stored = load_file(ROOT / "checkpoints" / "vit_mini" / "model.safetensors")
    digest = sha256()
    for key in sorted(backbone.vit.state_dict()):
        digest.update(f"{key}{tuple(stored[key].shape)}".encode() + stored[key].float().numpy().tobytes())
    assert backbone.fingerprint == digest.hexdigest()
    assert ViTFeatures.from_name("vit_mini").fingerprint == backbone.fingerprint


@pytest.mark.parametrize("name", BACKBONES)
def test_every_known_name_has_weights_on_the_hub(name):
    spec = BACKBONES[name]
    assert spec.name == name and timm.is_model(spec.timm_name)
    repository = spec.timm_name.replace("_quickgelu", "")  # the weights are the same
    assert timm.get_pretrained_cfg(spec.timm_name).hf_hub_id == f"timm/{repository}"
    if name in ("dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8"):
        assert spec.loss_scales == LossWeights(1, 1, 1)


def test_an_unknown_name_lists_the_known(tmp_path):
    for file in (None, tmp_path / "some.pth"):
        with pytest.raises(WeightsError, match="dino_vitx9") as caught:
            load_backbone("dino_vitx9", file)
        assert all(name in str(caught.value) for name in ("vit_s14_robust", *BACKBONES))
        assert not isinstance(caught.value, HubError)  # the bundled one would hide a typing error
    with pytest.raises(WeightsError):
        load_default_backbone("dino_vitx9")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("dino_vitb18", "dino_vitb8"), ("vit_small_patch8_224.dinox", "vit_small_patch8_224.dino"), ("DINO_VITS8", None)],
)
def test_a_typing_error_is_answered_with_a_guess(name, meant):
    with pytest.raises(WeightsError, match=re.escape(name)) as caught:
        load_backbone(name)
    assert meant is None or f"did you mean {meant}?" in str(caught.value)


def test_an_old_timm_name_means_the_new_one():
    old = "vit_small_patch16_224_dino"
    assert old in timm.models.get_deprecated_models() and timm.get_pretrained_cfg(old) is None
    assert weights._registered(old).timm_name == "vit_small_patch16_224.dino"
    assert weights._hub_repository(weights._registered(old)) == "timm/vit_small_patch16_224.dino"


@pytest.mark.parametrize("name", ["resnet10t", "deit_tiny_distilled_patch16_224"])
def test_a_model_that_is_no_plain_vit(tmp_path, vit_state, name):
    save_file(vit_state, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError, match=name):
        load_backbone(name, tmp_path / "file.safetensors")
