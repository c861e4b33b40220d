"""The amortized generator and its frozen ViT together: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from splice_ff.errors import InputError
from splice_ff.images import check_images
from splice_ff.networks.amortized import AmortizedGenerator, ImageEncoding
from splice_ff.one_shot.checks import check_size, check_strength, check_weights
from splice_ff.one_shot.model_files import ModelConfig, fingerprint
from splice_ff.one_shot.tiles import MAX_UNTILED, paint_in_tiles
from splice_ff.utils.machine import plain_torch
from splice_ff.utils.resize import resize_shorter_side
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.inputs import ViTInput


class OneShotModel(nn.Module):
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

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: `model.to(torch.bfloat16)` and `model.half()` work, and what they paint is near float32's."""
        return self.generator.unet.stem.weight.dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the generator's weights in float32, which a look is bound to."""
        return self._float32_fingerprint if self.dtype != torch.float32 else fingerprint(self.generator)

    @property
    def identity(self) -> dict[str, str]:
        """What tells this model's images from another's, for folders that several runs fill; weights alone do not."""
        unet = asdict(self.config.generator.unet)
        return {"model_sha256": self.fingerprint, **{f"unet.{name}": str(value) for name, value in unet.items()}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OneShotModel:
        if self.dtype == torch.float32 and fn(torch.zeros(())).dtype != torch.float32:
            self._float32_fingerprint = self.fingerprint  # rounding does not change whose weights they are
        return super()._apply(fn, recurse)

    def encode_images(self, images: Tensor) -> ImageEncoding:
        """What the generator takes of images (B, 3, H, W) in [0, 1] of any size: one ViT pass."""
        inputs = ViTInput(self.config.vit_size).resize(images, self.backbone.patch_size)
        return self.generator.encode_images(self.backbone, inputs)

    def embed(self, appearance: Tensor) -> Tensor:
        """Appearance tokens (B, M, C) of images (B, 3, H, W) in [0, 1], any size.

        Examples:
            >>> from splice_ff import SpliceFF, load_image
            >>> model = SpliceFF.from_pretrained("everyday")
            >>> model.embed(load_image("examples/cat.jpg").rgb).shape
            torch.Size([1, 32, 256])

        Raises:
            InputError: tensors of another shape or type, or values outside [0, 1].
        """
        check_images(appearance, "appearance")
        with plain_torch(gradients=False, autocast=True):
            return self.generator.appearance_tokens(self.encode_images(appearance.to(self.device))).float()

    def paint(
        self, structure: Tensor, appearance_tokens: Tensor, *, size: int | None = None, strength: float = 1.0
    ) -> Tensor:
        """Paint structure images with given looks.

        Args:
            structure: (B, 3, H, W) in [0, 1].
            appearance_tokens: (B, M, C), or (1, M, C) for all.
            size: shorter side, in pixels, at which to work; the model's default if None. Large ones go in tiles.
            strength: share of the change that is made: at 0 the structure images stay as they are, at 1 they have
                the given look, and between them the logits of their colors move in a straight line.

        Returns:
            (B, 3, H, W) in [0, 1]; detail finer than the working size comes from the structure images.

        Examples:
            >>> from splice_ff import SpliceFF, load_image
            >>> model = SpliceFF.from_pretrained("everyday")
            >>> tokens = model.embed(load_image("examples/cat.jpg").rgb)
            >>> model.paint(load_image("examples/raccoon.jpg").rgb, tokens, size=64).shape
            torch.Size([1, 3, 500, 600])

        Raises:
            InputError: images of another shape, type or range; a size or strength that cannot be; tokens of another
                model's shape, or for another number of images.
        """
        check_images(structure, "structure")
        size = check_size(self.config.size if size is None else size, structure.shape)
        strength = check_strength(strength)
        tokens = self._check_tokens(appearance_tokens)
        if len(tokens) not in (1, len(structure)):
            raise InputError(f"appearance tokens of {len(tokens)} looks for {len(structure)} structure images")
        with plain_torch(gradients=False, autocast=True):
            structure, tokens = structure.to(self.device).float(), tokens.to(self.device)
            working = resize_shorter_side(structure, size)
            encoding = self.encode_images(working)  # of what the generator is given, as in training
            tokens = tokens.expand(len(structure), -1, -1)
            if working.shape[-2] * working.shape[-1] > MAX_UNTILED:
                return paint_in_tiles(
                    self.generator.unet,
                    working,
                    encoding.structure_features,
                    tokens,
                    full_structure=structure,
                    strength=strength,
                )
            return self.generator.paint(working, encoding.structure_features, tokens, structure, strength=strength)

    def mix(self, looks: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
        """Weighted mean of looks, each (B, M, C), in the space of appearance tokens.

        Examples:
            >>> from splice_ff import SpliceFF, load_image
            >>> model = SpliceFF.from_pretrained("everyday")
            >>> looks = [model.embed(load_image(f"examples/{name}.jpg").rgb) for name in ("cat", "raccoon")]
            >>> model.mix(looks, [2, 1]).shape
            torch.Size([1, 32, 256])

        Args:
            looks: at least one.
            weights: one a look, not negative, not all 0; brought to a sum of 1. All alike if None.

        Raises:
            InputError: no look, another number of weights, or weights that cannot be.
        """
        shares = check_weights([1.0] * len(looks) if weights is None else weights, len(looks))
        return torch.stack([w * self._check_tokens(t) for w, t in zip(shares, looks, strict=True)]).sum(0)

    def _check_tokens(self, tokens: Tensor) -> Tensor:
        shape = tuple(self.generator.encoder.queries.shape)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != shape:
            raise InputError(f"appearance tokens of shape {tuple(tokens.shape)}; this model's are (B, *{shape})")
        return tokens
