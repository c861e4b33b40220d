"""The amortized generator: appearance encoder and cross-attention UNet, trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from einops import rearrange
from torch import Tensor, nn

from splice_ff.errors import InputError
from splice_ff.networks.appearance_encoder import AppearanceEncoder
from splice_ff.networks.cross_attention_unet import SIZES, CrossAttentionUNet
from splice_ff.vit.features import Features, ViTFeatures

Context = Literal["cls", "cls+patches"]


@dataclass(frozen=True)
class GeneratorConfig:
    """What an amortized generator is made from.

    Raises:
        InputError: unknown size or context.
    """

    layers: int
    """L, depth of the backbone."""
    width: int
    """D of the backbone's tokens."""
    size: str = "small"
    """A key of `SIZES`."""
    context: Context = "cls"
    """What the appearance tokens are made from: [CLS] tokens alone, or the patches' as well."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InputError(f"unknown generator size '{self.size}'. Known: {', '.join(SIZES)}")
        if self.context not in get_args(Context):
            raise InputError(f"unknown context '{self.context}'. Known: {', '.join(get_args(Context))}")


@dataclass(frozen=True)
class Condition:
    """What the generator wants to know of images from the backbone: one ViT pass serves every use of an image."""

    cls: Tensor
    """[CLS] tokens of all layers, (B, L, D)."""
    semantics: Tensor
    """Deepest keys of the patches, (B, D, h, w)."""
    patches: Tensor | None
    """Deepest tokens of the patches, (B, h w, D); only with the context `cls+patches`."""

    @classmethod
    def of(cls, features: Features, prefix: int) -> Condition:
        """From features with `cls`, the deepest keys and, if wanted, the deepest tokens; `prefix` tokens go first."""
        assert features.cls is not None
        keys = features.keys[max(features.keys)][:, :, prefix:]
        semantics = rearrange(keys.float(), "b heads (h w) d -> b (heads d) h w", h=features.grid[0])
        tokens = features.tokens[max(features.tokens)][:, prefix:].float() if features.tokens else None
        return cls(features.cls.float(), semantics, tokens)


class AmortizedGenerator(nn.Module):
    """Any structure image with any look, in one pass.

    Args:
        config: see `GeneratorConfig`.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        size = SIZES[config.size]
        self.config = config
        has_patches = config.context == "cls+patches"
        self.encoder = AppearanceEncoder(
            config.layers, config.width, size.tokens, size.token_channels, size.heads, has_patches
        )
        self.unet = CrossAttentionUNet(size, config.width)

    def features(self, backbone: ViTFeatures, images: Tensor) -> Features:
        """One pass of the backbone over images (B, 3, H, W) in [0, 1], at their size, for `Condition.of`."""
        wants_patches = self.config.context == "cls+patches"
        return backbone(images, cls=True, keys=[-1], tokens=[-1] if wants_patches else [])

    def observe(self, backbone: ViTFeatures, images: Tensor) -> Condition:
        """What this generator wants to know of images (B, 3, H, W) in [0, 1], at their size."""
        return Condition.of(self.features(backbone, images), backbone.prefix_tokens)

    def encode(self, cls: Tensor, patches: Tensor | None = None) -> Tensor:
        """Appearance tokens (B, M, C); see `AppearanceEncoder`."""
        return self.encoder(cls, patches)

    def paint(self, structure: Tensor, semantics: Tensor, tokens: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] from structure images, their semantics and appearance tokens."""
        return self.unet(structure, tokens, semantics)

    def forward(self, structure: Tensor, semantics: Tensor, cls: Tensor, patches: Tensor | None = None) -> Tensor:
        """Encode and paint: the whole way in one call, as training needs it.

        Args:
            structure: (B, 3, H, W) in [0, 1].
            semantics: of the structure images, (B, D, h, w).
            cls, patches: of the appearance images, (B, L, D) and (B, N, D).

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        return self.paint(structure, semantics, self.encode(cls, patches))
