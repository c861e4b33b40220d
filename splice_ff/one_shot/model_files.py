"""A trained amortized generator as a folder: config.json, model.safetensors and a model card (README.md)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import hf_hub_url, snapshot_download

from splice_ff.errors import CheckpointError, InputError
from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import UNetConfig
from splice_ff.one_shot.model_card import model_card
from splice_ff.utils.files import atomic_write, checkpoints_dir
from splice_ff.utils.hub import ask_hub
from splice_ff.utils.tensor_files import read_tensors, write_tensors

FORMAT = "splice-ff amortized generator 2"
OLD_FORMATS = ("splice-ff amortized generator 1",)
FILES = ("config.json", "model.safetensors", "README.md")
DiskType = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says.

    Raises:
        InputError: a size that is not a positive number of pixels.
    """

    generator: GeneratorConfig
    backbone: str
    """Name of the backbone that conditioned the training."""
    backbone_fingerprint: str
    """SHA-256 of its weights, see `ViTFeatures.fingerprint`."""
    vit_size: int
    """Shorter side, in pixels, of what the ViT sees."""
    size: int
    """Shorter side, in pixels, at which the generator works by default."""
    training: dict[str, Any] = field(default_factory=dict)
    """Facts for the model card; see `splice_ff.one_shot.model_card`."""

    def __post_init__(self) -> None:
        for name in ("vit_size", "size"):
            if not (isinstance(value := getattr(self, name), int) and value >= 16):
                raise InputError(f"{name} must be a number of pixels, at least 16, not {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """As in config.json."""
        return {
            "format": FORMAT,
            "generator": asdict(self.generator),
            "backbone": {"name": self.backbone, "fingerprint": self.backbone_fingerprint},
            "vit_size": self.vit_size,
            "size": self.size,
            "training": self.training,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The reverse.

        Raises:
            InputError: another format, or a value that is missing or cannot be.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            given = values.get("format", "none") if isinstance(values, dict) else "none"
            old = "; an older splice-ff wrote it: train it again, or use that version" if given in OLD_FORMATS else ""
            raise InputError(f"format {given!r:.80}, expected '{FORMAT}'{old}")
        try:
            return cls(
                GeneratorConfig(**values["generator"] | {"unet": UNetConfig(**values["generator"]["unet"])}),
                str(values["backbone"]["name"]),
                str(values["backbone"]["fingerprint"]),
                values["vit_size"],
                values["size"],
                dict(values.get("training", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"missing or wrong entry: {error}") from error


def save_model(folder: Path, generator: AmortizedGenerator, config: ModelConfig, dtype: DiskType = "fp32") -> None:
    """Write a model's folder; config.json goes last, so that a folder that has it is whole.

    Raises:
        CheckpointError: unknown dtype, weights that are not finite in it, or a place that takes no files.
    """
    if dtype not in get_args(DiskType):
        raise CheckpointError(f"unknown dtype '{dtype}'. Known: {', '.join(get_args(DiskType))}")
    kept = torch.float16 if dtype == "fp16" else torch.float32
    state = {k: t.detach().to(kept) for k, t in generator.state_dict().items()}
    write_tensors(folder / "model.safetensors", state, {"format": FORMAT})
    parameters = sum(t.numel() for t in state.values())
    texts = {
        "README.md": model_card(config.to_dict(), parameters, dtype),
        "config.json": json.dumps(config.to_dict(), indent=1) + "\n",
    }
    try:
        for name, text in texts.items():
            atomic_write(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read_config(folder: Path) -> ModelConfig:
    """Read config.json alone.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    file = folder / "config.json"
    try:
        return ModelConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error


def load_model(folder: Path) -> tuple[AmortizedGenerator, ModelConfig]:
    """Read what `save_model` wrote: the generator in float32, in eval mode, on the CPU; and its config.

    Raises:
        CheckpointError: a missing or damaged file, another format, missing, surplus or misshapen tensors, or NaN.
    """
    config = read_config(folder)
    try:
        generator = AmortizedGenerator(config.generator)
    except (TypeError, ValueError, RuntimeError) as error:  # numbers that no layer can have
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    file = folder / "model.safetensors"
    tensors, _ = read_tensors(file, "weights of an amortized generator", FORMAT)
    expected = generator.state_dict()
    for key, tensor in expected.items():
        if key not in tensors:
            raise CheckpointError(f"{file}: has no tensor '{key}', which config.json calls for")
        if tensors[key].shape != tensor.shape:
            found, wanted = tuple(tensors[key].shape), tuple(tensor.shape)
            raise CheckpointError(f"{file}: tensor '{key}' is {found}, config.json calls for {wanted}")
    if surplus := tensors.keys() - expected.keys():
        raise CheckpointError(f"{file}: tensor '{min(surplus)}' has no place in what config.json describes")
    generator.load_state_dict({k: t.float() for k, t in tensors.items()})
    return generator.eval(), config


def find_model(name: str | Path) -> Path:
    """The folder of a model by path, bundled name or hub id, downloaded if it must be.

    Raises:
        CheckpointError: there is none, or the hub cannot be reached.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if path.is_dir():
        raise CheckpointError(f"{path}: no config.json in this folder; name a folder that save_pretrained wrote")
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)]
    parts = str(name).split("/")
    if len(parts) == 2 and all(parts) and not str(name).startswith((".", "~")):
        return _from_hub(str(name))
    known = ", ".join(bundled) or "none"
    raise CheckpointError(f"no model '{name}': neither a bundled one (here: {known}), nor a folder, nor a hub id")


def bundled_models() -> dict[str, Path]:
    """Folders of the amortized generators that come with the project, by name."""
    found = {}
    for config in sorted(checkpoints_dir().glob("*/config.json")):
        try:
            if json.loads(config.read_text(encoding="utf-8")).get("format", "").startswith("splice-ff amortized"):
                found[config.parent.name] = config.parent
        except (OSError, ValueError, AttributeError):
            continue  # whatever else lies there is no model
    return found


def _from_hub(repository: str) -> Path:
    """The folder of a hub repository in the hub's cache; the newest version if the hub answers."""
    try:
        ask_hub(hf_hub_url(repository, "config.json"))  # one short question: the download retries for minutes
        return Path(snapshot_download(repository, allow_patterns=list(FILES)))
    except Exception as error:  # the HTTP client under huggingface_hub, and with it the exceptions, vary
        try:
            return Path(snapshot_download(repository, allow_patterns=list(FILES), local_files_only=True))
        except Exception:
            raise CheckpointError(
                f"model '{repository}' is neither a folder here nor cached, and could not be downloaded from the hub "
                f"({type(error).__name__})"
            ) from error


def fingerprint(generator: AmortizedGenerator) -> str:
    """SHA-256 of the weights rounded to half precision: the same for a model saved in fp32 and in fp16."""
    digest = hashlib.sha256()
    for key, tensor in sorted(generator.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()
