"""Features of a frozen vision transformer: what the losses, the encoder and the analysis tools look at.

`ViTFeatures` wraps any timm `VisionTransformer` or `Eva` model (DINO, DINOv2 and CLIP are the former, DINOv3
the latter). One forward pass returns every feature asked for and stops at the deepest of them.
"""

from __future__ import annotations

import splice_ff.utils.lean  # noqa: F401  # before timm

# isort: split
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Attention, PatchEmbed
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from splice_ff.utils.attention import attention, prefers_plain_attention
from splice_ff.vit.spec import FACETS, BackboneSpec, PositionInterpolation

PROJECTIONS = ("queries", "keys", "values")
"""What an attention layer makes of its input, in the order in which timm stores the weights."""
UNUSED = ("head.", "fc_norm.", "attn_pool.")
"""Parts of a ViT after its last block's tokens, by the beginning of their names: not loaded, not fingerprinted."""
LEAST_KEPT = 8
"""Patches that are kept of a region at least, where the image has so many: fewer say nothing of a look."""


@dataclass(frozen=True)
class Features:
    """Features of a batch of images. Dictionaries map a layer (0 is the first block) to its tensor.

    T = prefix tokens ([CLS], registers) + h * w patches, row by row; of a region, its patches only.
    """

    grid: tuple[int, int]
    """Patches down and across, (h, w), of the whole image."""
    cls: Tensor | None = None
    """[CLS] token at the output of every block, before the final norm: (B, L, D)."""
    queries: dict[int, Tensor] = field(default_factory=dict)
    """(B, heads, T, d) each, as the projection makes them: before any q/k norm or rotary embedding."""
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)
    """Block outputs, (B, T, D)."""

    def self_similarity(self, layer: int | None = None) -> Tensor:
        """Cosine similarity of all pairs of keys, heads concatenated: (B, T, T) in [-1, 1].

        `layer` defaults to the deepest one held.
        """
        return self_similarity(self.keys[max(self.keys) if layer is None else layer])


def self_similarity(keys: Tensor) -> Tensor:
    """Keys (B, heads, T, d) to the cosine similarity of all pairs of tokens, (B, T, T) in [-1, 1], in float32.

    S(I)_ij = cos(k_i(I), k_j(I)), k_i being the key of token i with its heads concatenated: the paper's descriptor of
    structure (section 3.2).
    """
    # Outside autocast: the structure loss is a small difference of numbers near 1, which bfloat16 rounds away.
    with torch.autocast(keys.device.type, enabled=False):
        directions = F.normalize(rearrange(keys.float(), "b heads t d -> b t (heads d)"), dim=-1)
        return directions @ directions.mT


class ViTFeatures(nn.Module):
    """A frozen ViT that returns intermediate features. Gradients flow to the images only.

    Args:
        vit: a timm `VisionTransformer` or `Eva` with a patch-embedding convolution.
        mean, std: per-channel statistics that the ViT was trained with, for images in [0, 1].
        spec: where it came from (name and loss scales); absent for a ViT made by hand.

    Raises:
        TypeError: another kind of model, or a ViT with parts that this class does not know (a convolutional stem,
            parallel or post-norm blocks, a distillation token).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: nn.Module,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        spec: BackboneSpec | None = None,
    ) -> None:
        super().__init__()
        if not _is_known(vit):
            raise TypeError(f"{type(vit).__name__} is not a plain ViT (timm's VisionTransformer or Eva)")
        self.vit: Any = vit.eval().requires_grad_(False)
        self.spec = spec
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)

    @classmethod
    def from_name(cls, name: str, weights: str | None = None) -> ViTFeatures:
        """Load a backbone by short name (`dino_vitb8`, ...), timm name, or checkpoint folder.

        Args:
            name: see `splice_ff.vit.weights.BACKBONES`.
            weights: a .safetensors or .pth file, or a folder with one, instead of the hub's weights.

        Raises:
            splice_ff.vit.weights.WeightsError: unknown name, unreachable hub, or a file that does not fit.
        """
        from splice_ff.vit.weights import load_backbone  # here, because weights.py needs this class

        return load_backbone(name, weights)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Pixels that one patch covers, (down, across)."""
        down, across = self.vit.patch_embed.proj.kernel_size
        return down, across

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: [CLS] and registers."""
        return self.vit.num_prefix_tokens

    @property
    def width(self) -> int:
        """D, the tokens' length."""
        return self.vit.embed_dim

    @property
    def name(self) -> str:
        """The short name it was loaded under, or the model's class."""
        return self.spec.name if self.spec else type(self.vit).__name__

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and float32 values of the ViT's parameters (heads apart), sorted by name."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.vit.state_dict().items()):
            if key.startswith(UNUSED):
                continue
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> ViTFeatures:
        """Stay in eval mode: a frozen backbone has no dropout, whatever its owner does."""
        return super().train(False)

    def with_matmuls_in(self, dtype: torch.dtype) -> ViTFeatures:
        """A copy whose matrix weights are stored in `dtype`, for use under autocast to the same dtype.

        Autocast re-casts frozen weights at every call (its cache holds only weights that require grad); stored
        in `dtype` they are cast once. Norms, embeddings and the residual stream stay in float32.
        """
        import copy

        twin = copy.deepcopy(self)
        twin.fingerprint = self.fingerprint  # rounding does not change whose weights they are
        store_matrices_in(twin, dtype)
        return twin

    def forward(
        self,
        images: Tensor,
        *,
        cls: bool = False,
        queries: Iterable[int] = (),
        keys: Iterable[int] = (),
        values: Iterable[int] = (),
        tokens: Iterable[int] = (),
        keep: Tensor | None = None,
    ) -> Features:
        """Features of images (B, 3, H, W) in [0, 1], RGB; normalized here, not resized.

        Sides that are not multiples of the patch lose the remainder, as in DINO. Layers count from 0; negative
        ones from the end, -1 being the deepest. `cls=True` gives the [CLS] token of every layer.

        `keep`, masks (B, 1, H, W) or (1, 1, H, W) in [0, 1], asks for the features of a region: the other patches are
        dropped after the position embedding, so that no layer's [CLS] token knows of them. Patches more than half
        inside are kept, and `LEAST_KEPT` in any case, those furthest inside.

        Raises:
            IndexError: a layer that the ViT does not have.
            ValueError: images of another shape, smaller than one patch, or `cls` from a ViT without one; masks of
                another shape, or empty ones; tokens or keys of regions of different numbers of patches, of which only
                [CLS] tokens make a batch.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
        if cls and self.vit.cls_token is None:
            raise ValueError(f"{self.name} has no [CLS] token, which the appearance loss needs")
        projected = dict(zip(PROJECTIONS, (self._layers(i) for i in (queries, keys, values)), strict=True))
        outputs = self._layers(tokens)
        last_projected = max((i for layers in projected.values() for i in layers), default=-1)
        last_output = max(outputs | ({self.depth - 1} if cls else set()), default=-1)

        inputs = (images - self.mean) / self.std
        x, grid, rope = self._embed(inputs.to(self.vit.patch_embed.proj.weight.dtype))
        if keep is not None:
            kept = kept_patches(keep, images, self.patch_size)
            counts = kept.sum(1)
            if counts.min() < counts.max():
                if outputs or last_projected >= 0:
                    raise ValueError(f"regions of {counts.tolist()} patches have no batch of tokens; take one by one")
                alone = [self(images[i : i + 1], cls=cls, keep=keep[i : i + 1]).cls for i in range(len(images))]
                return Features(grid, torch.cat(alone) if cls else None)
            x, rope = _keep(x, rope, kept, self.prefix_tokens)
        facets: dict[str, dict[int, Tensor]] = {facet: {} for facet in FACETS}
        cls_tokens = []
        is_plain = prefers_plain_attention(x.device, self.vit.blocks[0].attn.proj.weight.dtype, x.shape[1])
        for i, block in enumerate(self.vit.blocks[: max(last_projected, last_output) + 1]):
            normed = None
            for facet, layers in projected.items():
                if i in layers:
                    normed = block.norm1(x) if normed is None else normed
                    facets[facet][i] = _project(block.attn, normed, facet)
            if i == last_projected > last_output:
                break  # this layer's attention and MLP are not needed
            if i == last_output and i not in outputs and _is_plain(block):
                x = _first_token_of_block(block, x, normed, facets["keys"].get(i))
            else:
                fused = block.attn.fused_attn  # timm's switch; set for this call alone
                block.attn.fused_attn = fused and not is_plain
                x = block(x) if rope is None else block(x, rope=_rope_of_layer(self.vit, rope, i))
                block.attn.fused_attn = fused
            if i in outputs:
                facets["tokens"][i] = x
            if cls:
                cls_tokens.append(x[:, 0])
        return Features(grid, torch.stack(cls_tokens, 1) if cls else None, **facets)

    def _layers(self, layers: Iterable[int]) -> set[int]:
        """Layers counted from 0."""
        layers = set(layers)
        for i in layers:
            if not -self.depth <= i < self.depth:
                raise IndexError(f"layer {i}: {self.name} has {self.depth} layers (0 to {self.depth - 1})")
        return {i % self.depth for i in layers}

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Normalized images to tokens (B, T, D), their grid, and rotary embeddings if the ViT has them."""
        vit = self.vit
        if x.shape[-2] < self.patch_size[0] or x.shape[-1] < self.patch_size[1]:
            raise ValueError(f"images of {tuple(x.shape[-2:])} are smaller than one patch {self.patch_size}")
        patches = vit.patch_embed.proj(x)
        h, w = patches.shape[-2:]
        tokens = vit.patch_embed.norm(rearrange(patches, "b d h w -> b (h w) d"))
        embeddings = 0.0 if vit.pos_embed is None else self._position_embeddings((h, w), x.shape[-2:])
        prefix = [t.expand(len(x), -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        if vit.no_embed_class:  # positions belong to patches only
            tokens = torch.cat([*prefix, tokens + embeddings], 1)
        else:
            tokens = torch.cat([*prefix, tokens], 1) + embeddings
        rope = getattr(vit, "rope", None)
        if rope is not None and getattr(rope, "feat_shape", None) is not None:  # made for one grid
            rope.update_feat_shape([h, w])
        return vit.norm_pre(tokens), (h, w), None if rope is None else rope.get_embed(shape=[h, w])

    def _position_embeddings(self, grid: tuple[int, int], pixels: Sequence[int]) -> Tensor:
        """Learned position embeddings, (1, T, D), for a grid (h, w) cut from an image of (H, W) pixels.

        Interpolated as the family's own code does; see `PositionInterpolation`. DINO's and DINOv2's keep the native
        ones only where the image has the native proportions *in pixels* (they ask whether it is square): at 224 x 228
        they interpolate from the native 28 x 28 grid to the same grid.
        """
        positions = self.vit.pos_embed
        prefix = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        native, native_pixels = self.vit.patch_embed.grid_size, self.vit.patch_embed.img_size
        if grid == native and pixels[0] * native_pixels[1] == pixels[1] * native_pixels[0]:
            return positions
        how = self.spec.positions if self.spec else PositionInterpolation()
        target: dict[str, Any] = {"size": grid}
        if how.offset:
            target = {"scale_factor": tuple((n + how.offset) / m for n, m in zip(grid, native, strict=True))}
        patches = rearrange(positions[:, prefix:].float(), "1 (h w) d -> 1 d h w", h=native[0])
        patches = F.interpolate(patches, mode="bicubic", antialias=how.antialias, **target)
        patches = rearrange(patches, "1 d h w -> 1 (h w) d").to(positions.dtype)
        return torch.cat([positions[:, :prefix], patches], 1)


def kept_patches(masks: Tensor, images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Which patches of images (B, 3, H, W) lie in their masks: (B, h * w), boolean; see `ViTFeatures.forward`.

    Raises:
        ValueError: masks of another shape, or with nothing inside.
    """
    if masks.ndim != 4 or masks.shape[0] not in (1, len(images)) or masks.shape[1:] != (1, *images.shape[2:]):
        raise ValueError(f"masks of {tuple(masks.shape)} for images of {tuple(images.shape)}; expected (B, 1, H, W)")
    masks = masks.expand(len(images), -1, -1, -1).float()
    inside = F.avg_pool2d(masks, patch_size).flatten(1)  # what no patch covers is left out, as of images
    if not inside.any(1).all():
        raise ValueError("a mask is empty")
    least = inside.topk(min(LEAST_KEPT, inside.shape[1])).indices
    return (inside > 0.5).scatter(1, least, True)


def _keep(x: Tensor, rope: Tensor | None, kept: Tensor, prefix: int) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, T, D) and rotary embeddings (..., h * w, d) of the patches (B, h * w) that are kept, as many each."""
    if kept.all():
        return x, rope
    indices = kept.nonzero()[:, 1].view(len(x), -1)
    patches = x[:, prefix:].gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))
    if rope is not None:  # (h w, d), or (layers, heads, h w, d): the same for all images, and now each has its own
        rope = (rope[None] if rope.ndim == 2 else rope)[..., indices, :].movedim(-3, -4)
    return torch.cat([x[:, :prefix], patches], 1), rope


def store_matrices_in(backbone: ViTFeatures, dtype: torch.dtype) -> None:
    """Convert the weights of a backbone's matrix products; see `ViTFeatures.with_matmuls_in`."""
    for module in backbone.vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def _per_channel(values: Sequence[float]) -> Tensor:
    """(1, 3, 1, 1), whatever the caller's default dtype and device."""
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)


def _project(attention: Any, x: Tensor, facet: str) -> Tensor:
    """One facet of an attention layer from its normed input: (B, T, D) to (B, heads, T, d)."""
    index = PROJECTIONS.index(facet)
    if getattr(attention, "qkv", None) is None:  # three projections
        y = getattr(attention, f"{facet[0]}_proj")(x)
    else:
        bias = attention.qkv.bias
        if bias is None and getattr(attention, "q_bias", None) is not None:  # Eva keeps them outside
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        y = F.linear(x, attention.qkv.weight.chunk(3)[index], None if bias is None else bias.chunk(3)[index])
    heads = attention.num_heads if facet == "queries" else getattr(attention, "num_kv_heads", attention.num_heads)
    return rearrange(y, "b t (heads d) -> b heads t d", heads=heads)


def _rope_of_layer(vit: Any, rope: Tensor, i: int) -> Tensor:
    return rope[i] if getattr(vit, "rope_mixed", False) else rope


def _is_known(vit: Any) -> bool:
    """Whether `ViTFeatures` knows all that happens outside the blocks, and that they make keys from `norm1(x)`."""
    if not isinstance(vit, VisionTransformer | Eva) or not isinstance(vit.patch_embed, PatchEmbed):
        return False
    prefix = sum(t.shape[1] for t in (vit.cls_token, vit.reg_token) if t is not None)
    return prefix == vit.num_prefix_tokens and all(isinstance(b, Block | EvaBlock) for b in vit.blocks)


def _is_plain(block: Any) -> bool:
    """Whether `_first_token_of_block` knows every part of the block."""
    # gates came to timm after the oldest version that this package runs with
    return type(block) is Block and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None


def _first_token_of_block(block: Any, x: Tensor, normed: Tensor | None, keys: Tensor | None) -> Tensor:
    """Output of a block for token 0 alone, (B, 1, D).

    The deepest [CLS] token needs the keys and values of all tokens but one query and one row of the MLP: a fifth
    of the block's work.
    """
    attn = block.attn
    normed = block.norm1(x) if normed is None else normed
    query = attn.q_norm(_project(attn, normed[:, :1], "queries"))
    keys = attn.k_norm(_project(attn, normed, "keys") if keys is None else keys)
    y = attention(query, keys, _project(attn, normed, "values"))
    y = attn.proj(attn.norm(rearrange(y, "b heads t d -> b t (heads d)")))
    first = x[:, :1] + block.ls1(y)
    return first + block.ls2(block.mlp(block.norm2(first)))
