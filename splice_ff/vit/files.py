"""A backbone's files, and what is wrong with them, before torch is imported: it takes seconds."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from splice_ff.errors import InputError, WeightsError
from splice_ff.utils.config_file import Section, checked, read_json
from splice_ff.utils.files import checkpoints_dir, reason
from splice_ff.vit.spec import BackboneSpec, LossWeights

Pixels = Annotated[int, Field(ge=1, le=4096)]
Positive = Annotated[float, Field(gt=0)]
Channels = tuple[float, float, float]


class LossScales(Section):
    """Factors on the loss weights, for features of another scale than DINO's."""

    structure: Positive = 1.0
    appearance: Positive = 1.0
    identity: Positive = 1.0


class ViTConfig(Section):
    """What the config.json of a checkpoint folder may say: a timm VisionTransformer of bounded size.

    The names are timm's, but for `architecture`, `mean`, `std`, and those that `BackboneSpec` explains.
    """

    architecture: Literal["timm.models.VisionTransformer"]
    img_size: Pixels | tuple[Pixels, Pixels] = 224
    patch_size: Pixels | tuple[Pixels, Pixels] = 16
    in_chans: Literal[3] = 3
    num_classes: Literal[0] = 0
    global_pool: Literal["", "avg", "token"] = "token"
    embed_dim: int = Field(768, ge=1, le=2**14)
    depth: int = Field(12, ge=1, le=128)
    num_heads: int = Field(12, ge=1, le=2**10)
    mlp_ratio: float = Field(4.0, gt=0, le=16)
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: float | None = None
    class_token: bool = True
    no_embed_class: bool = False
    reg_tokens: int = Field(0, ge=0, le=2**10)
    pre_norm: bool = False
    mean: Channels
    std: tuple[Positive, Positive, Positive]
    loss_scales: LossScales = LossScales()
    teachers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> ViTConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self

    def arguments(self) -> dict[str, Any]:
        """What timm's VisionTransformer takes."""
        return self.model_dump(exclude={"architecture", "mean", "std", "loss_scales", "teachers"})

    def spec(self, name: str) -> BackboneSpec:
        """What is known of it, under the folder's name."""
        return BackboneSpec(name, loss_scales=LossWeights(**self.loss_scales.model_dump()), teachers=self.teachers)


def find_config(name: str) -> Path | None:
    """The config.json of a bundled backbone or of a checkpoint folder; None if the name is of neither.

    Raises:
        WeightsError: a folder without one, or a path to nothing.
    """
    bundled = checkpoints_dir() / name
    folder = bundled if len(Path(name).parts) == 1 and bundled.is_dir() else Path(name)
    file = folder / "config.json"
    if file.is_file():
        return file
    if len(folder.parts) > 1 or folder.is_absolute():  # else it may be a timm name, which a folder may happen to have
        fault = "has no config.json: not a backbone's folder" if folder.is_dir() else "no such folder"
        raise WeightsError(f"{folder}: {fault}")
    return None


def read_config(file: Path) -> ViTConfig:
    """What a checkpoint folder's config.json says.

    Raises:
        WeightsError: it is no backbone's, or of a ViT beyond bounds.
    """
    try:
        return checked(ViTConfig, file, read_json(file))
    except InputError as error:
        raise WeightsError(f"{error}: not a backbone's config") from error


def weights_file(path: str | Path) -> Path:
    """The file of weights that a path means: itself, or the model.safetensors of a folder."""
    path = Path(path)
    return path / "model.safetensors" if path.is_dir() else path


def check_weights(file: Path) -> None:
    """Find out from its first bytes whether a file may hold weights.

    Raises:
        WeightsError: it is missing, empty, unreadable, or one of the files that people get instead of weights.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such weights file")
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({reason(error)})") from error
    if not start:
        raise WeightsError(f"{file}: the weights file is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{file}: only a git-LFS pointer to the weights; fetch them with 'git lfs pull'")
    if start.lstrip().startswith(b"<"):
        raise WeightsError(f"{file}: a web page, not weights; download the file itself")
    if start.startswith(b"PK") and _is_compressed(file):
        raise WeightsError(f"{file}: a compressed archive, which PyTorch does not write; unpack it")


def _is_compressed(file: Path) -> bool:
    """Whether a zip archive's tensors would take more memory than its size; False of a damaged one.

    TorchScript archives compress their program, under code/, which nobody reads.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            read = (entry for entry in archive.infolist() if "/code/" not in entry.filename)
            return any(entry.compress_type != zipfile.ZIP_STORED for entry in read)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def check_backbone(name: str, weights: str | Path | None) -> None:
    """What can be known of a backbone's files before they are loaded, for both arguments as `load_backbone` has them.

    Raises:
        WeightsError: they cannot be those of a backbone.
    """
    config = find_config(name)
    if config:
        read_config(config)
    if weights or config:
        check_weights(weights_file(weights or config.parent))  # type: ignore[union-attr]
