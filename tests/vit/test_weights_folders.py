import json
import os
import re
import time

import pytest
import torch
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


BEYOND = {
    "nested 100 000 deep": '{"architecture": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "two megabytes": json.dumps(CONFIG | {"name": "x" * 2**21}),
    "an endless number": '{"depth": ' + "9" * 10_000 + "}",
    **{
        f"{key} {value}": json.dumps(CONFIG | {key: value})
        for key, value in {
            "depth": 10**9,
            "embed_dim": 10**9,
            "num_heads": 10**9,
            "img_size": 10**9,
            "patch_size": [1, 10**9],
            "reg_tokens": 10**9,
            "num_classes": 10**9,
            "in_chans": 10**9,
            "mlp_ratio": 1e9,
            "mean": [float("nan")] * 3,
            "std": [0.0, 1.0, 1.0],
            "loss_scales": {"structure": float("inf")},
        }.items()
    },
}


@pytest.mark.parametrize("text", BEYOND.values(), ids=BEYOND)
def test_configs_beyond_bounds_are_refused_at_once(vit_folder, text):
    file = vit_folder / "config.json"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(WeightsError, match=re.escape(str(file))) as caught:
        load_backbone(str(vit_folder))
    assert time.process_time() - start < 2
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"depth": 128}, {"embed_dim": 2**14}, {"img_size": 4096}, {"mlp_ratio": 16}])
def test_the_largest_config_takes_neither_time_nor_memory(vit_folder, changes):
    """The file does not hold what it describes, which is found out before memory is taken for it."""
    (vit_folder / "config.json").write_text(json.dumps(CONFIG | {"num_heads": 1} | changes))
    start = time.process_time()
    with pytest.raises(WeightsError, match=r"model\.safetensors: (has no )?tensor"):
        load_backbone(str(vit_folder))
    assert time.process_time() - start < 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_no_file(vit_folder, name):
    (vit_folder / name).unlink()
    os.mkfifo(vit_folder / name)
    with pytest.raises(WeightsError, match=re.escape(str(vit_folder))):
        load_backbone(str(vit_folder))


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(WeightsError, match=re.escape(f"{tmp_path}: has no config.json")):
        load_backbone(str(tmp_path))
    with pytest.raises(WeightsError, match="nowhere: no such folder"):
        load_backbone(str(tmp_path / "nowhere"))


def test_weights_do_not_change_with_their_file(vit_folder):
    backbone = load_backbone(str(vit_folder))
    before = backbone.vit.blocks[0].attn.qkv.weight.clone()
    file = vit_folder / "model.safetensors"
    with file.open("r+b") as opened:  # in place, as a careless copy does
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(file.stat().st_size // 2))
    assert all(torch.equal(a, b) for a, b in [(before, backbone.vit.blocks[0].attn.qkv.weight)])
    assert load_backbone(str(vit_folder), vit_folder).fingerprint != backbone.fingerprint


def test_parts_without_weights_are_gone(vit_folder):
    """They would stay on torch's meta device, from which nothing can be moved."""
    (vit_folder / "config.json").write_text(json.dumps(CONFIG | {"global_pool": "avg"}))
    backbone = load_backbone(str(vit_folder))
    assert not any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))
    backbone.to(torch.float64)


def test_a_config_that_is_not_text(vit_folder):
    (vit_folder / "config.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(WeightsError, match=re.escape(str(vit_folder / "config.json"))):
        load_backbone(str(vit_folder))
