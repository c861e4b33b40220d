"""Which backbones there are, and where their weights come from: hub, cache, a file, or a folder."""

from __future__ import annotations

import json
import queue
import threading
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from splice_ff.backbone import UNUSED, ViTFeatures
from splice_ff.errors import InputError
from splice_ff.losses import LossWeights

NO_ARGUMENTS = ("architecture", "mean", "std", "loss_scales", "teachers")
"""Keys of a checkpoint folder's config.json that are not arguments of its ViT."""
HUB_TIMEOUT = 10.0
"""Seconds without an answer after which the hub counts as unreachable."""


class WeightsError(InputError):
    """A backbone's weights are missing, damaged, or another model's."""


class HubError(WeightsError):
    """Weights are neither cached nor can they be downloaded."""


@dataclass(frozen=True)
class BackboneSpec:
    """Where a backbone comes from, as data."""

    name: str
    timm_name: str
    loss_scales: LossWeights = field(default_factory=lambda: LossWeights(1.0, 1.0, 1.0))
    """Factors on the loss weights, for backbones whose features have another scale than DINO's."""
    teachers: tuple[str, ...] = ()
    """Networks that it was distilled from, as far as recorded: they cannot judge images that were made with it."""


BACKBONES = {
    name: BackboneSpec(name, timm_name)
    for name, timm_name in {
        # the paper's
        "dino_vits16": "vit_small_patch16_224.dino",
        "dino_vits8": "vit_small_patch8_224.dino",
        "dino_vitb16": "vit_base_patch16_224.dino",
        "dino_vitb8": "vit_base_patch8_224.dino",
        # others, for comparison; no loss weights have been tuned for them
        "dinov2_vits14": "vit_small_patch14_dinov2.lvd142m",
        "dinov2_vitb14": "vit_base_patch14_dinov2.lvd142m",
        "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
        "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
        "dinov3_vits16": "vit_small_patch16_dinov3.lvd1689m",
        "dinov3_vitb16": "vit_base_patch16_dinov3.lvd1689m",
        "clip_vitb16": "vit_base_patch16_clip_224.openai",
    }.items()
}
BUNDLED = "vit_mini"
"""The small stand-in that comes with the project. Not DINO; see its model card."""


def checkpoints_dir() -> Path:
    """Folder of the bundled checkpoints: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    inside = package / "checkpoints"
    return inside if inside.is_dir() else package.parent / "checkpoints"


def load_backbone(name: str, weights: str | Path | None = None) -> ViTFeatures:
    """A frozen backbone by short name, timm name, bundled checkpoint or folder.

    Args:
        name: a key of `BACKBONES`, `vit_mini`, any timm ViT, or a folder with config.json and model.safetensors.
        weights: a .safetensors or .pth file, or a folder with model.safetensors, to use instead of the hub's.

    Raises:
        WeightsError: unknown name; damaged file; missing, misshapen or non-finite tensors (file and key named).
        HubError: no file was given and the weights are neither cached nor reachable.
    """
    folder = checkpoints_dir() / name if name == BUNDLED else Path(name)
    if (folder / "config.json").is_file():
        vit, spec, mean, std = _from_config(folder / "config.json")
        file = _weights_file(weights or folder)
    else:
        spec = BACKBONES.get(name) or BackboneSpec(name, name)
        if not timm.is_model(spec.timm_name):
            known = ", ".join([BUNDLED, *BACKBONES])
            raise WeightsError(f"unknown backbone '{name}'. Known: {known}, any timm ViT, or a checkpoint folder")
        file = _weights_file(weights) if weights else _from_hub(spec)
        vit = timm.create_model(spec.timm_name, pretrained=False, num_classes=0)
        mean, std = vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]
    try:
        backbone = ViTFeatures(vit, mean, std, spec)
    except (TypeError, RuntimeError) as error:  # another kind of model; a mean that is not of three channels
        where = folder / "config.json" if (folder / "config.json").is_file() else f"backbone '{name}'"
        raise WeightsError(f"{where}: {error}") from error
    _load_into(vit, read_state(file), file)
    return backbone


def load_default_backbone(name: str) -> tuple[ViTFeatures, str | None]:
    """The backbone `name`, or the bundled one where official weights are neither cached nor reachable.

    Returns:
        The backbone, and a notice to show to the user if it is the stand-in.
    """
    try:
        return load_backbone(name), None
    except HubError:
        return load_backbone(BUNDLED), (
            f"{name} weights are neither cached nor reachable: using the bundled {BUNDLED}, a much smaller stand-in "
            f"that is not DINO. Expect blurrier, less exact pictures. For the real ones: go online once, or give "
            f"--backbone {name} --weights FILE."
        )


def read_state(file: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or PyTorch checkpoint file, named as the ViT names them.

    DINO's full checkpoints hold a `teacher` (preferred, as in DINO's own evaluation) under prefixes.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything but tensors.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such weights file")
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([Namespace]):  # DINO's full checkpoints keep their options in one
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, AssertionError, ...
        raise WeightsError(f"{file}: not a readable weights file ({_first_line(error)})") from error
    for key in ("teacher", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not (isinstance(state, dict) and state and all(isinstance(k, str) for k in state)):
        raise WeightsError(f"{file}: holds no dictionary of tensors")
    if odd := [key for key, tensor in state.items() if not isinstance(tensor, Tensor)]:
        raise WeightsError(f"{file}: '{odd[0]}' is not a tensor")
    for prefix in ("module.", "backbone."):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): t for key, t in state.items()}
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _from_config(file: Path) -> tuple[nn.Module, BackboneSpec, list[float], list[float]]:
    """The ViT that a checkpoint folder's config.json describes, without its weights."""
    try:
        config = json.loads(file.read_text())
        arguments = {k: v for k, v in config.items() if k not in NO_ARGUMENTS}
        if config["architecture"] != "timm.models.VisionTransformer":
            raise ValueError(f"architecture {config['architecture']!r} is not timm.models.VisionTransformer")
        vit = VisionTransformer(**arguments)
        scales = LossWeights(**{"structure": 1.0, "appearance": 1.0, "identity": 1.0, **config.get("loss_scales", {})})
        spec = BackboneSpec(file.parent.name, str(file.parent), scales, tuple(config.get("teachers", ())))
        return vit, spec, config["mean"], config["std"]
    except Exception as error:  # whatever timm makes of a wrong value: it asserts, divides by it, ...
        raise WeightsError(f"{file}: not a backbone's config ({type(error).__name__}: {_first_line(error)})") from error


def _weights_file(path: str | Path) -> Path:
    path = Path(path)
    return path / "model.safetensors" if path.is_dir() else path


def cached_weights(spec: BackboneSpec) -> Path | None:
    """The weights file in the hub's cache, if it is there; the network is not asked."""
    cached = try_to_load_from_cache(_hub_repository(spec), "model.safetensors")
    return Path(cached) if isinstance(cached, str) else None


def _hub_repository(spec: BackboneSpec) -> str:
    config = timm.get_pretrained_cfg(spec.timm_name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"backbone '{spec.name}' has no weights on the hub: give --weights FILE")
    return config.hf_hub_id


def _from_hub(spec: BackboneSpec) -> Path:
    """The weights file in the hub's cache, downloaded if it is not there yet."""
    if (cached := cached_weights(spec)) is not None:
        return cached
    repo = _hub_repository(spec)
    try:
        # One short question first: the download itself retries for minutes where nobody answers.
        ask_hub(hf_hub_url(repo, "model.safetensors"))
        return Path(hf_hub_download(repo, "model.safetensors"))
    except Exception as error:  # the HTTP client under huggingface_hub, and with it the exceptions, vary
        raise HubError(
            f"weights of {spec.name} (hub repository {repo}) are not cached and could not be downloaded "
            f"({type(error).__name__}). Two ways on: --weights FILE, or the bundled --backbone {BUNDLED}"
        ) from error


def ask_hub(url: str) -> None:
    """Return if the hub has this file; raise what huggingface_hub raises, or TimeoutError after HUB_TIMEOUT.

    In a thread, because a socket's timeout starts anew with every address of a host and every byte received, and
    does not cover the look-up of the host's name.
    """
    answers: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
            answers.put(None)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=HUB_TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer within {HUB_TIMEOUT} seconds") from None
    if error is not None:
        raise error


def _load_into(vit: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Copy tensors into the ViT in float32, or say which do not fit. Heads and final pooling are not used."""
    expected = {k: t for k, t in vit.state_dict().items() if not k.startswith(UNUSED)}
    if missing := [key for key in expected if key not in state]:
        # the layouts that DINOv2's and CLIP's authors publish
        try:
            state = checkpoint_filter_fn(dict(state), vit)
        except KeyError as error:
            raise WeightsError(f"{file}: has no tensor {error}, which this backbone needs") from error
        except Exception as error:  # it takes shapes for granted
            raise WeightsError(
                f"{file}: has no tensor '{missing[0]}', nor is it of another known layout ({_first_line(error)})"
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
    vit.load_state_dict({k: state[k].float() for k in expected}, strict=False)
