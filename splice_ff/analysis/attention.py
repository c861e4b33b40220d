"""Where the [CLS] token looks: its attention to the patches, head by head (arXiv:2104.14294, figure 1)."""

from __future__ import annotations

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor

from splice_ff.analysis.patches import prepare
from splice_ff.errors import InputError
from splice_ff.utils.machine import plain_torch
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import VIT_SIZE


@plain_torch(gradients=False)
def cls_attention(backbone: ViTFeatures, images: Tensor, layer: int = -1, size: int = VIT_SIZE) -> Tensor:
    """Attention of the [CLS] token to the patches, in one ViT pass that stops before that layer's attention.

    Args:
        backbone: the frozen ViT.
        images: (B, 3, H, W) in [0, 1].
        layer: from 0, or negative from the end.
        size: shorter side, in pixels, of what the ViT sees.

    Returns:
        (B, heads, h, w), the share of the attention that goes to each patch. The rest, up to 1, goes to the prefix
        tokens.

    Raises:
        InputError: the ViT has no [CLS] token, or the images are something else.
        IndexError: a layer that it does not have.
    """
    if backbone.vit.cls_token is None:
        raise InputError(f"{backbone.name} has no [CLS] token to show the attention of")
    features = backbone(prepare(backbone, images, "images", size), queries=[layer], keys=[layer])
    (number,) = features.keys
    attention = backbone.vit.blocks[number].attn
    # The features are the bare projections; some ViTs norm or rotate them first.
    query, keys = attention.q_norm(features.queries[number][:, :, :1]), attention.k_norm(features.keys[number])
    rope = getattr(backbone.vit, "rope", None)
    if rope is not None:
        embedding = rope.get_embed(shape=list(features.grid))
        if getattr(backbone.vit, "rope_mixed", False):
            embedding = embedding[number]
        prefix = backbone.prefix_tokens  # not rotated: they have no position
        rotated = apply_rot_embed_cat(keys[:, :, prefix:], embedding, half=getattr(attention, "rotate_half", False))
        keys = torch.cat([keys[:, :, :prefix], rotated], 2)
    weights = (attention.scale * query.float() @ keys.float().mT).softmax(-1)
    return weights[:, :, 0, backbone.prefix_tokens :].unflatten(-1, features.grid)
