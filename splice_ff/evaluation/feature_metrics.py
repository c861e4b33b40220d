"""Metrics in the feature space of a ViT. Of keys (1, heads, T, d) and [CLS] tokens (1, D) of its deepest layer.

The losses themselves are `structure_loss`, `appearance_loss` and `identity_loss` of `splice_ff.losses`. The two here
are what published comparisons of appearance transfer report besides, there with DINO ViT-B/8: figures made with
another backbone cannot be set beside theirs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from splice_ff.vit.features import self_similarity


def self_sim(output_keys: Tensor, structure_keys: Tensor) -> float:
    """Mean absolute difference of the keys' self-similarities, in [0, 2]: 0 where the layout is the same.

    Published as "self-sim" (the descriptor is that of the paper's section 3.2).
    """
    return (self_similarity(output_keys) - self_similarity(structure_keys)).abs().mean().item()


def cls_cosine(output_cls: Tensor, appearance_cls: Tensor) -> float:
    """Cosine of the [CLS] tokens, in [-1, 1]: 1 where the look is the same.

    Published as "DINO-I" (Ruiz et al., DreamBooth, section 4), a name that fits DINO backbones only.
    """
    return F.cosine_similarity(output_cls.float(), appearance_cls.float()).mean().item()
