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

from splice_ff.errors import CheckpointError, InputError, first_line
from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import UNetConfig
from splice_ff.one_shot.model_card import model_card
from splice_ff.utils.files import atomic_write, checkpoints_dir, reason
from splice_ff.utils.hub import ask_hub
from splice_ff.utils.tensor_files import read_tensors, write_tensors

FORMAT = "splice-ff amortized generator 2"
OLD_FORMATS = ("splice-ff amortized generator 1",)
MAX_CONFIG_BYTES, MAX_SIZE = 2**20, 8000
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
            value = getattr(self, name)
            if type(value) is not int or not 16 <= value <= MAX_SIZE:
                raise InputError(f"{name} must be a number of pixels from 16 to {MAX_SIZE}, not {value!r:.40}")

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
        """The config that a dictionary of plain values describes.

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
            raise InputError(f"missing or wrong entry: {first_line(error)}") from error


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
        "README.md": model_card(folder.resolve().name, config.to_dict(), parameters, dtype),
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
        return ModelConfig.from_dict(_read_json(file))
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({first_line(error)})") from error


def _read_json(file: Path) -> Any:
    if not file.is_file():  # a named pipe would never end
        raise OSError("no such file" if not file.exists() else "not a regular file")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"larger than {MAX_CONFIG_BYTES >> 20} MiB")
    return json.loads(file.read_text(encoding="utf-8"))


def load_model(folder: Path) -> tuple[AmortizedGenerator, ModelConfig]:
    """Read what `save_model` wrote: the generator in float32, in eval mode, on the CPU; and its config.

    Raises:
        CheckpointError: a missing or damaged file, another format, missing, surplus or misshapen tensors, or NaN.
    """
    config = read_config(folder)
    try:
        with torch.device("meta"):  # without memory: only the file shows whether these numbers are to be believed
            generator = AmortizedGenerator(config.generator)
    except (TypeError, ValueError, RuntimeError) as error:  # numbers that do not go together
        raise CheckpointError(f"{folder / 'config.json'}: {first_line(error)}") from error
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
    # copies: the file's own tensors lie where it maps into memory, unaligned
    generator.load_state_dict({k: t.to(torch.float32, copy=True) for k, t in tensors.items()}, assign=True)
    generator.unet.to(memory_format=torch.channels_last)
    return generator.eval(), config


@dataclass(frozen=True)
class HubOptions:
    """How to ask the hub; see `huggingface_hub.snapshot_download`."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


def find_model(name: str | Path, hub: HubOptions = HubOptions()) -> Path:
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
        return _from_hub(str(name), hub)
    known = ", ".join(bundled) or "none"
    raise CheckpointError(f"no model '{name}': neither a bundled one (here: {known}), nor a folder, nor a hub id")


def bundled_models() -> dict[str, Path]:
    """Folders of the amortized generators that come with the project, by name."""
    found = {}
    for config in sorted(checkpoints_dir().glob("*/config.json")):
        try:
            if _read_json(config).get("format", "").startswith("splice-ff amortized"):
                found[config.parent.name] = config.parent
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # other files may lie there too
    return found


def _from_hub(repository: str, hub: HubOptions) -> Path:
    """The folder of a hub repository in the hub's cache; the newest version if the hub answers."""

    def download(local_files_only: bool) -> Path:
        options = asdict(hub) | {"local_files_only": local_files_only}
        return Path(snapshot_download(repository, allow_patterns=list(FILES), **options))

    why: Exception | None = None
    if not hub.local_files_only:
        try:  # one short question first: the download retries for minutes
            ask_hub(hf_hub_url(repository, "config.json", revision=hub.revision), hub.token)
            return download(False)
        except Exception as error:  # the HTTP client under huggingface_hub, and with it the exceptions, vary
            why = error
    try:
        return download(True)
    except Exception as error:
        tried = f"could not be downloaded from the hub ({type(why).__name__})" if why else "the hub was not to be asked"
        at = f" at revision '{hub.revision}'" if hub.revision else ""
        raise CheckpointError(f"model '{repository}'{at} is neither a folder here nor cached, and {tried}") from error


def fingerprint(generator: AmortizedGenerator) -> str:
    """SHA-256 of the weights rounded to half precision: the same for a model saved in fp32 and in fp16."""
    digest = hashlib.sha256()
    for key, tensor in sorted(generator.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()
