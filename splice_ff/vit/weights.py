"""Backbones and where their weights come from: hub, cache, a file, or a folder."""

from __future__ import annotations

import splice_ff.utils.lean  # noqa: F401  # before timm

# isort: split
import pickle
import re
from argparse import Namespace
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import get_deprecated_models
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_checkpoint_filter_fn
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from splice_ff.errors import HubError, WeightsError, first_line
from splice_ff.utils.hub import cached_file, hub_file
from splice_ff.utils.machine import plain_torch
from splice_ff.vit.features import UNUSED, ViTFeatures
from splice_ff.vit.files import check_weights, find_config, read_config, weights_file
from splice_ff.vit.spec import BACKBONES, BUNDLED, BackboneSpec
from splice_ff.vit.torchscript import is_torchscript, read_torchscript

PREFIXES = ("module.", "teacher.", "backbone.")
"""Of names in checkpoints of training programs, outermost first."""


@plain_torch()
def load_backbone(name: str, weights: str | Path | None = None) -> ViTFeatures:
    """A frozen backbone by short name, timm name, bundled checkpoint or folder.

    Args:
        name: a key of `BACKBONES`, `vit_s14_robust` or `vit_mini`, any timm ViT, or a folder with config.json and
            model.safetensors.
        weights: a .safetensors or .pth file, or a folder with model.safetensors, to use instead of the hub's.

    Raises:
        WeightsError: unknown name; damaged file; missing, misshapen or non-finite tensors (file and key named).
        HubError: no file was given and the weights are neither cached nor reachable.
    """
    try:
        return _load(name, weights)
    except HubError as error:
        raise HubError(f"{error}. Two ways on: --weights FILE, or the bundled --backbone {BUNDLED}") from error


@plain_torch()
def load_default_backbone(name: str) -> tuple[ViTFeatures, str | None]:
    """The backbone `name`, or the bundled one where official weights are neither cached nor reachable.

    Returns:
        The backbone, and a notice to show to the user if it is the stand-in.
    """
    try:
        return _load(name), None
    except HubError as error:
        return _load(BUNDLED), (
            f"{error}: using the bundled {BUNDLED}, a smaller stand-in that is not DINO. Expect blurrier, less "
            f"exact images. For the real ones: go online once, or give --backbone {name} --weights FILE."
        )


@plain_torch()
def backbone_without_weights(name: str) -> ViTFeatures:
    """A backbone with the shapes that `load_backbone` would give it, on the meta device where timm can make it there.

    Raises:
        WeightsError: unknown name, or a damaged folder.
    """
    make, statistics, spec, where = _architecture(name)
    return _features(lambda: _without_weights(make), statistics, spec, where)


def _load(name: str, weights: str | Path | None = None) -> ViTFeatures:
    """`load_backbone`, whose HubError does not name the ways on."""
    make, statistics, spec, where = _architecture(name)
    config_file = find_config(name)
    source = weights or (config_file.parent if config_file else None)
    state, file = _read(source) if source else _read_from_hub(spec)
    backbone = _features(lambda: _without_weights(make), statistics, spec, where)
    _load_into(backbone.vit, state, file)
    return backbone


def _architecture(name: str) -> tuple[Callable[[], nn.Module], dict[str, Any] | None, BackboneSpec, str]:
    """What makes a backbone's ViT, its images' mean and spread if not timm's, what is known of it, and for errors."""
    if config_file := find_config(name):
        config = read_config(config_file)
        make = partial(VisionTransformer, weight_init="skip", **config.arguments())
        return make, config.model_dump(), config.spec(config_file.parent.name), str(config_file)
    spec = _registered(name)
    return partial(timm.create_model, spec.timm_name, pretrained=False, num_classes=0), None, spec, f"backbone '{name}'"


def _features(
    make: Callable[[], nn.Module], statistics: dict[str, Any] | None, spec: BackboneSpec, where: str
) -> ViTFeatures:
    try:
        vit: Any = make()
        statistics = statistics or vit.pretrained_cfg
        return ViTFeatures(vit, statistics["mean"], statistics["std"], spec)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # another kind of model, or odd numbers
        raise WeightsError(f"{where}: {first_line(error)}") from error


def read_state(file: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or PyTorch checkpoint file, named as the ViT names them.

    DINO's full checkpoints hold a `teacher` (preferred, as in DINO's own evaluation) under prefixes.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything but tensors.
    """
    check_weights(file)
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        elif is_torchscript(file):
            state = read_torchscript(file)
        else:
            with torch.serialization.safe_globals([Namespace]):  # DINO's full checkpoints keep their options in one
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, AssertionError, ...
        raise WeightsError(f"{file}: {_unreadable(error)}") from error
    for key in ("teacher", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not (isinstance(state, dict) and state and all(isinstance(k, str) for k in state)):
        raise WeightsError(f"{file}: holds no dictionary of tensors")
    if odd := [key for key, tensor in state.items() if not _is_plain(tensor)]:
        raise WeightsError(f"{file}: '{odd[0]}' is not a plain tensor of numbers")
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): t for key, t in state.items()}
    return state


def _unreadable(error: Exception) -> str:
    """What is wrong with a file of weights. Torch's own words would advise to let the file run code."""
    if isinstance(error, pickle.UnpicklingError) and (named := re.search(r"GLOBAL ([\w.]+)", str(error))):
        return (
            f"holds more than tensors ({named[1]}), and reading that could run code; where you trust it, load it with "
            "the program that wrote it and save its state_dict as .safetensors"
        )
    detail = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else first_line(error)
    return f"not a readable weights file, or damaged; download it again ({detail:.200})"


def _is_plain(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"  # the meta device has shapes but no numbers
        and not (tensor.is_complex() or tensor.is_quantized)
    )


def _registered(name: str) -> BackboneSpec:
    """The spec of a short name, or of one in timm's registry, old names included.

    Raises:
        WeightsError: unknown, or with a tag that timm does not know.
    """
    spec = BACKBONES.get(name) or BackboneSpec.of(name, get_deprecated_models().get(name, name))
    try:
        if timm.is_model(spec.timm_name):
            timm.get_pretrained_cfg(spec.timm_name)
            return spec
    except RuntimeError:  # an unknown tag
        pass
    known = [BUNDLED, *BACKBONES]
    close = get_close_matches(name, [*known, *timm.list_models("vit_*", pretrained=True)], n=1)
    guess = f"; did you mean {close[0]}?" if close else "."
    raise WeightsError(
        f"unknown backbone '{name}'{guess} Known: {', '.join(known)}, any timm ViT, or a checkpoint folder"
    )


def _without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """A new model; a plain ViT takes no memory and next to no time, as all that it computes with comes from a file."""
    with torch.device("meta"):
        model = make()
    # Others may compute buffers when they are made, rotary embeddings for one.
    return model if type(model) is VisionTransformer and not list(model.buffers()) else make()


def cached_weights(spec: BackboneSpec) -> Path | None:
    """The weights file in the hub's cache, if it is there; the network is not asked."""
    return cached_file(_hub_repository(spec), "model.safetensors")


def _hub_repository(spec: BackboneSpec) -> str:
    config = timm.get_pretrained_cfg(spec.timm_name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"backbone '{spec.name}' has no weights on the hub: give --weights FILE")
    return config.hf_hub_id


def _read(path: str | Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a file or folder, and the file."""
    file = weights_file(path)
    return read_state(file), file


def _read_from_hub(spec: BackboneSpec) -> tuple[dict[str, Tensor], Path]:
    """The same from the hub's cache; downloaded if it is not there yet, and again if it is damaged there."""
    repository = _hub_repository(spec)
    try:
        file = hub_file(repository, "model.safetensors")
        try:
            return _read(file)
        except WeightsError:
            return _read(hub_file(repository, "model.safetensors", again=True))
    except HubError as error:
        raise HubError(f"weights of {spec.name} (hub repository {repository}) {error}") from error


def _dinov3(state: dict[str, Tensor], vit: Eva, file: Path) -> dict[str, Tensor]:
    """DINOv3's own names as timm's. Its small models have biases that a mask and training have left at 0."""
    if vit.blocks[0].attn.q_bias is None:
        biases = {key: tensor for key, tensor in state.items() if key.endswith("attn.qkv.bias")}
        for key, bias in biases.items():
            mask = state.get(f"{key}_mask", torch.ones(()))
            if (bias.nan_to_num() * mask.nan_to_num()).any():
                raise WeightsError(f"{file}: '{key}' is not 0, and this backbone has none: name timm's with 'qkvb'")
        state = {key: tensor for key, tensor in state.items() if key not in biases}
    return eva_checkpoint_filter_fn(dict(state), vit)


def _load_into(vit: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Copy tensors into the ViT in float32, or say which do not fit. Heads and final pooling are not used."""
    expected = {k: t for k, t in vit.state_dict().items() if not k.startswith(UNUSED)}
    if missing := [key for key in expected if key not in state]:
        # the layouts that the authors of DINOv2, DINOv3 and CLIP publish
        try:
            state = _dinov3(state, vit, file) if isinstance(vit, Eva) else checkpoint_filter_fn(dict(state), vit)
        except WeightsError:
            raise
        except KeyError as error:
            raise WeightsError(f"{file}: has no tensor {error}, which this backbone needs") from error
        except Exception as error:  # it takes shapes for granted
            raise WeightsError(
                f"{file}: has no tensor '{missing[0]}', nor is it of another known layout ({first_line(error)})"
            ) from error
    for key, tensor in expected.items():
        if key not in state:
            raise WeightsError(f"{file}: has no tensor '{key}', which this backbone needs")
        if state[key].shape != tensor.shape:
            raise WeightsError(
                f"{file}: tensor '{key}' is {tuple(state[key].shape)}, this backbone needs {tuple(tensor.shape)}"
            )
        if not torch.isfinite(state[key]).all():
            raise WeightsError(f"{file}: tensor '{key}' holds NaN or infinite values")
    # A copy, as what is read may be mapped to the file: the weights must not change with it.
    vit.load_state_dict({k: state[k].to(torch.float32, copy=True) for k in expected}, strict=False, assign=True)
    for name, child in vit.named_children():
        if any(parameter.is_meta for parameter in child.parameters()):  # of UNUSED
            setattr(vit, name, nn.Identity())
