"""One-shot appearance transfer: `SpliceFF.from_pretrained(...)(structure, appearance)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from splice_ff.errors import CheckpointError, InputError
from splice_ff.images import MAX_PIXELS, MIN_SIDE
from splice_ff.networks.amortized import AmortizedGenerator, ImageEncoding
from splice_ff.one_shot.model_files import DiskType, ModelConfig, find_model, fingerprint, load_model, save_model
from splice_ff.one_shot.tiles import MAX_UNTILED, paint_in_tiles
from splice_ff.utils.resize import resize_shorter_side, to_full_size
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.inputs import ViTInput
from splice_ff.vit.weights import load_backbone


class SpliceFF(nn.Module, ModelHubMixin):
    """An amortized generator with the frozen ViT that it was trained with.

    Args:
        generator: the trained generator.
        backbone: its ViT.
        vit_size: shorter side, in pixels, of what the ViT sees, as in training.
        size: shorter side, in pixels, at which the generator works unless told otherwise.
        card: facts of the training for config.json and the model card; see `splice_ff.one_shot.model_card`.

    Raises:
        InputError: sizes that cannot be; a generator made for a ViT of another depth or width.
    """

    def __init__(
        self,
        generator: AmortizedGenerator,
        backbone: ViTFeatures,
        *,
        vit_size: int,
        size: int,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.backbone = generator, backbone
        self.config = ModelConfig(
            generator.config, backbone.name, backbone.fingerprint, vit_size, size, dict(card or {})
        )
        wanted, found = (generator.config.layers, generator.config.width), (backbone.depth, backbone.width)
        if wanted != found:
            raise InputError(f"a generator for a ViT of depth and width {wanted}, not {found} as {backbone.name} has")
        self._disk_type: DiskType = "fp32"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.mean.device

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the generator's weights, which a look is bound to."""
        return fingerprint(self.generator)

    def encode_images(self, images: Tensor) -> ImageEncoding:
        """What the generator takes of images (B, 3, H, W) in [0, 1] of any size: one ViT pass."""
        inputs = ViTInput(self.config.vit_size).resize(images, self.backbone.patch_size)
        return self.generator.encode_images(self.backbone, inputs)

    @torch.no_grad()
    def embed(self, appearance: Tensor) -> Tensor:
        """Appearance tokens (B, M, C) of images (B, 3, H, W) in [0, 1], any size."""
        return self.generator.appearance_tokens(self.encode_images(appearance.to(self.device)))

    @torch.no_grad()
    def paint(
        self, structure: Tensor, appearance_tokens: Tensor, *, size: int | None = None, strength: float = 1.0
    ) -> Tensor:
        """Paint structure images with given looks.

        Args:
            structure: (B, 3, H, W) in [0, 1].
            appearance_tokens: (B, M, C), or (1, M, C) for all.
            size: shorter side, in pixels, at which to work; the model's default if None. Large ones go in tiles.
            strength: between the structure images' own look (0) and the given one (1), a straight line in the space
                of appearance tokens.

        Returns:
            (B, 3, H, W) in [0, 1]; detail finer than the working size comes from the structure images.

        Raises:
            InputError: a size or strength that cannot be, or tokens of another model's shape.
        """
        size = self.config.size if size is None else size
        check_size(size, structure)
        if not 0 <= strength <= 1:
            raise InputError(f"strength must be between 0 and 1, not {strength}")
        structure, tokens = structure.to(self.device), self._check_tokens(appearance_tokens.to(self.device))
        working = resize_shorter_side(structure, size)
        encoding = self.encode_images(working)  # of what the generator is given, as in training
        if strength < 1:
            tokens = torch.lerp(self.generator.appearance_tokens(encoding), tokens, strength)
        tokens = tokens.expand(len(structure), -1, -1)
        if working.shape[-2] * working.shape[-1] > MAX_UNTILED:
            output = paint_in_tiles(self.generator.unet, working, encoding.structure_features, tokens)
        else:
            output = self.generator.paint(working, encoding.structure_features, tokens)
        return to_full_size(output, working, structure)

    def forward(self, structure: Tensor, appearance: Tensor) -> Tensor:
        """Structure and appearance images, (B, 3, H, W) and (B, 3, H', W') in [0, 1], to (B, 3, H, W) in [0, 1]."""
        return self.paint(structure, self.embed(appearance))

    def mix(self, looks: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
        """Weighted mean of looks, each (B, M, C), in the space of appearance tokens.

        Args:
            looks: at least one.
            weights: one a look, not negative, not all 0; brought to a sum of 1. All alike if None.

        Raises:
            InputError: no look, another number of weights, or weights that cannot be.
        """
        weights = [1.0] * len(looks) if weights is None else weights
        if not looks or len(weights) != len(looks):
            raise InputError(f"{len(looks)} looks and {len(weights)} weights: give one weight for each look")
        if not all(0 <= w < float("inf") for w in weights) or not sum(weights):
            raise InputError(f"weights must not be negative, nor all 0: {', '.join(map(str, weights))}")
        total = sum(weights)
        return torch.stack([w / total * self._check_tokens(t) for w, t in zip(weights, looks, strict=True)]).sum(0)

    def save_pretrained(self, save_directory: str | Path, *, dtype: DiskType = "fp32", **hub: Any) -> str | None:
        """Write config.json, model.safetensors and README.md; not the backbone, which config.json names.

        Args:
            save_directory: the folder, made if it is not there.
            dtype: "fp32" or "fp16", of the weights on disk.
            hub: `push_to_hub`, `repo_id` and the like, as `huggingface_hub.ModelHubMixin.save_pretrained` takes them.

        Raises:
            CheckpointError: weights that are not finite in that dtype, or a place that takes no files.
        """
        self._disk_type = dtype
        try:
            return super().save_pretrained(save_directory, **hub)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise CheckpointError(f"{save_directory}: cannot be written ({error.strerror})") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(save_directory, self.generator, self.config, self._disk_type)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's reads only the hub and plain folders
        cls,
        name: str | Path,
        *,
        backbone: ViTFeatures | str | Path | None = None,
        weights: str | Path | None = None,
    ) -> SpliceFF:
        """Load a model, in eval mode, on the CPU.

        Args:
            name: a bundled model, a folder, or a hub id `owner/name`.
            backbone: a loaded one, or where to find it, if not under the name that the model knows.
            weights: file or folder with the backbone's weights.

        Raises:
            CheckpointError: no such model, damaged or unknown files, NaN weights, or another backbone than the one it
                was trained with.
            splice_ff.vit.weights.WeightsError: the backbone cannot be loaded.
        """
        folder = find_model(name)
        generator, config = load_model(folder)
        if not isinstance(backbone, ViTFeatures):
            backbone = load_backbone(str(backbone or config.backbone), weights)
        if backbone.fingerprint != config.backbone_fingerprint:
            raise CheckpointError(
                f"{folder}: trained with backbone {config.backbone} (SHA-256 {config.backbone_fingerprint[:12]}…), "
                f"which {backbone.name} (SHA-256 {backbone.fingerprint[:12]}…) is not"
            )
        return cls(generator, backbone, vit_size=config.vit_size, size=config.size, card=config.training).eval()

    def _check_tokens(self, tokens: Tensor) -> Tensor:
        shape = tuple(self.generator.encoder.queries.shape)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != shape:
            raise InputError(f"appearance tokens of shape {tuple(tokens.shape)}; this model's are (B, *{shape})")
        return tokens


def check_size(size: int, image: Tensor) -> None:
    """Whether one can work on (B, 3, H, W) at a shorter side of `size`.

    Raises:
        InputError: too small, or more pixels than can be held.
    """
    if size < MIN_SIDE:
        raise InputError(f"size must be at least {MIN_SIDE} pixels, not {size}")
    short, long = min(image.shape[-2:]), max(image.shape[-2:])
    if size * size * long / short > MAX_PIXELS:
        raise InputError(
            f"a size of {size} makes {image.shape[-1]}x{image.shape[-2]} more than {MAX_PIXELS // 1_000_000} megapixels"
        )
