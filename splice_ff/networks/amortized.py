"""The amortized generator: appearance encoder and cross-attention UNet, trained together.

The nearest prior art is SpliceNet (Tumanyan et al., arXiv:2311.12193), by the authors of Splice: one feed-forward
network, with Splice's losses, whose convolutions the appearance image's last [CLS] token modulates globally, trained
for one category of images at a time. Here the [CLS] tokens of all layers become a set of appearance tokens that every
place of the image attends to on its own, the structure image's ViT features tell the network what each place shows,
training takes pairs of several categories, and looks can be mixed, kept in files and refined per pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from einops import rearrange
from torch import Tensor, nn

from splice_ff.errors import InputError
from splice_ff.networks.appearance_encoder import AppearanceEncoder
from splice_ff.networks.cross_attention_unet import (
    MAX_CHANNELS,
    SIZES,
    CrossAttentionUNet,
    UNetConfig,
    check_count,
)
from splice_ff.vit.features import Features, ViTFeatures

Context = Literal["cls", "cls+patches"]


@dataclass(frozen=True)
class GeneratorConfig:
    """What an amortized generator is made from.

    Raises:
        InputError: unknown context, or a number that no generator can have.
    """

    layers: int
    """L, depth of the backbone."""
    width: int
    """D of the backbone's tokens."""
    unet: UNetConfig = SIZES["small"]
    context: Context = "cls"
    """What the appearance tokens are made from: [CLS] tokens alone, or the patches' as well."""

    def __post_init__(self) -> None:
        check_count("layers and width", [self.layers, self.width], MAX_CHANNELS)
        if self.context not in get_args(Context):
            raise InputError(f"unknown context '{self.context}'. Known: {', '.join(get_args(Context))}")


@dataclass(frozen=True)
class ImageEncoding:
    """What the generator takes of images from the backbone: one ViT pass serves every use of an image."""

    structure_features: Tensor
    """Deepest keys of the patches, (B, D, h, w)."""
    cls: Tensor
    """[CLS] tokens of all layers, (B, L, D)."""
    patches: Tensor | None
    """Deepest tokens of the patches, (B, h w, D); only with the context `cls+patches`."""

    @classmethod
    def from_features(cls, features: Features, prefix: int, context: Context) -> ImageEncoding:
        """From features with `cls`, the deepest keys and, for patches, the deepest tokens; `prefix` tokens go first."""
        assert features.cls is not None
        keys = features.keys[max(features.keys)][:, :, prefix:]
        keys = rearrange(keys.float(), "b heads (h w) d -> b (heads d) h w", h=features.grid[0])
        patches = features.tokens[max(features.keys)][:, prefix:].float() if context == "cls+patches" else None
        return cls(keys, features.cls.float(), patches)


class AmortizedGenerator(nn.Module):
    """Any structure image with any look, in one pass.

    Args:
        config: see `GeneratorConfig`.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        unet, has_patches = config.unet, config.context == "cls+patches"
        self.config = config
        self.encoder = AppearanceEncoder(
            config.layers, config.width, unet.tokens, unet.token_channels, unet.heads, has_patches
        )
        self.unet = CrossAttentionUNet(unet, config.width)

    def features(self, backbone: ViTFeatures, images: Tensor, tokens: Iterable[int] = ()) -> Features:
        """One pass of the backbone over images (B, 3, H, W) in [0, 1], at their size, for `ImageEncoding`.

        `tokens` are further layers whose tokens to return, for the style loss.
        """
        wants_patches = self.config.context == "cls+patches"
        return backbone(images, cls=True, keys=[-1], tokens=[*tokens, *([-1] if wants_patches else [])])

    def encode_images(self, backbone: ViTFeatures, images: Tensor) -> ImageEncoding:
        """What this generator takes of images (B, 3, H, W) in [0, 1], at their size."""
        return ImageEncoding.from_features(self.features(backbone, images), backbone.prefix_tokens, self.config.context)

    def appearance_tokens(self, appearance: ImageEncoding) -> Tensor:
        """Appearance tokens (B, M, C) of encoded appearance images; see `AppearanceEncoder`."""
        tokens: Tensor = self.encoder(appearance.cls, appearance.patches)
        return tokens

    def paint(
        self,
        structure: Tensor,
        structure_features: Tensor,
        appearance_tokens: Tensor,
        full_structure: Tensor | None = None,
        *,
        strength: float | Tensor = 1.0,
    ) -> Tensor:
        """(B, 3, H, W) in [0, 1]; see `CrossAttentionUNet`."""
        output: Tensor = self.unet(structure, structure_features, appearance_tokens, full_structure, strength=strength)
        return output

    def forward(
        self,
        structure: Tensor,
        structure_features: Tensor,
        cls: Tensor,
        patches: Tensor | None = None,
        *,
        with_pixels: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Encode the appearance and paint: the whole way in one call, as training needs it.

        Args:
            structure: (B, 3, H, W) in [0, 1].
            structure_features: of the structure images, (B, D, h, w).
            cls, patches: of the appearance images, (B, L, D) and (B, N, D).
            with_pixels: also return the change of pixels; see `CrossAttentionUNet`.

        Returns:
            (B, 3, H, W) in [0, 1]; with pixels, a pair: these and the change of pixels, of the same shape.
        """
        tokens = self.encoder(cls, patches)
        painted: Tensor | tuple[Tensor, Tensor]
        painted = self.unet(structure, structure_features, tokens, with_pixels=with_pixels)
        return painted
