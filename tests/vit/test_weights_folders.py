import json
import re

import pytest
from support.checkpoint_files import CONFIG

from splice_ff.errors import WeightsError
from splice_ff.vit.spec import LossWeights
from splice_ff.vit.weights import load_backbone


def test_a_folder_says_all(vit_folder, vit_fingerprint):
    config = CONFIG | {"loss_scales": {"structure": 3.0, "identity": 0.5}}
    (vit_folder / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(str(vit_folder))
    assert backbone.fingerprint == vit_fingerprint
    assert backbone.name == "tiny" and backbone.depth == 2
    assert backbone.spec.loss_scales == LossWeights(3.0, 1.0, 0.5)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert backbone.std.flatten().tolist() == pytest.approx([0.3, 0.2, 0.1])
    assert not any(p.requires_grad for p in backbone.parameters())


def test_scales_are_one_unless_said(vit_folder):
    assert load_backbone(str(vit_folder)).spec.loss_scales == LossWeights(1, 1, 1)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[1, 2]",
        "null",
        {key: value for key, value in CONFIG.items() if key != "mean"},
        {key: value for key, value in CONFIG.items() if key != "architecture"},
        CONFIG | {"architecture": "timm.models.ResNet"},
        CONFIG | {"embed_dim": 50},
        CONFIG | {"embed_dim": "wide"},
        CONFIG | {"num_heads": 0},
        CONFIG | {"depth": "three"},
        CONFIG | {"unknown": 1},
        CONFIG | {"loss_scales": {"apearance": 1.0}},
        CONFIG | {"loss_scales": [1, 2, 3]},
        CONFIG | {"mean": [0.5, 0.5]},
        CONFIG | {"std": "small"},
    ],
    ids=lambda config: str(config)[-40:],
)
def test_configs_that_describe_no_backbone(vit_folder, config):
    (vit_folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(WeightsError, match=re.escape(str(vit_folder / "config.json"))):
        load_backbone(str(vit_folder))


def test_a_config_that_is_not_text(vit_folder):
    (vit_folder / "config.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(WeightsError, match=re.escape(str(vit_folder / "config.json"))):
        load_backbone(str(vit_folder))
