"""Checkpoint folders of a tiny ViT, and what the loader says of files that do not fit it."""

import json

import pytest
from safetensors.torch import save_file

from splice_ff.errors import HubError, WeightsError
from splice_ff.vit.weights import load_backbone

TINY = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6, "num_classes": 0}
CONFIG = {"architecture": "timm.models.VisionTransformer", "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]} | TINY


def checkpoint_folder(path, config, state):
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(state, path / "model.safetensors")
    return path


def prefixed(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def refusal(name, file):
    """The one line that the user gets, which must name the file."""
    with pytest.raises(WeightsError) as caught:
        load_backbone(str(name), file)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message, message
    assert not isinstance(caught.value, HubError)
    return message
