"""The step that the speed of ours is measured against: one ViT pass per loss term and image.

As in the original code: every pass runs the whole ViT with attention matrices in memory, its parameters require
gradients, targets are encoded anew for each term, and images go through alone. Same losses, same generator,
written plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splice_ff.losses import appearance_loss, identity_loss, structure_loss
from splice_ff.networks.skip_unet import CHANNELS, SKIP_CHANNELS
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.inputs import PUBLISHED


class NaiveSkipUNet(nn.Module):
    """The published generator written plainly: BatchNorm over one image, concatenation, default memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.skips, self.down, self.joins, self.up = (nn.ModuleList() for _ in range(4))
        inputs, below = (3, *CHANNELS[:-1]), (*CHANNELS[1:], CHANNELS[-1])
        for ins, outs, deeper in zip(inputs, CHANNELS, below, strict=True):
            joined = SKIP_CHANNELS + deeper
            self.skips.append(_layer(ins, SKIP_CHANNELS, 1))
            self.down.append(nn.Sequential(_layer(ins, outs, 3, stride=2), _layer(outs, outs, 3)))
            self.joins.append(nn.BatchNorm2d(joined))
            self.up.append(nn.Sequential(_layer(joined, outs, 3), _layer(outs, outs, 1)))
        self.to_rgb = nn.Conv2d(CHANNELS[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] to the same, in training mode."""
        skipped = []
        for skip, down in zip(self.skips, self.down, strict=True):
            skipped.append(skip(x))
            x = down(x)
        for i in reversed(range(len(self.up))):
            h, w = skipped[i].shape[-2:]
            x = F.interpolate(x, scale_factor=2, mode="bilinear")[..., :h, :w]
            x = self.up[i](self.joins[i](torch.cat([skipped[i], x], 1)))
        return torch.sigmoid(self.to_rgb(x))


def _layer(ins: int, outs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(ins, outs, kernel, stride, kernel // 2)
    return nn.Sequential(convolution, nn.BatchNorm2d(outs), nn.LeakyReLU(0.2, inplace=True))


def naive_step(vit: Any, backbone: ViTFeatures, structure: Tensor, appearance: Tensor) -> Callable[[], None]:
    """A function that takes one step on views (1, 3, H, W) in [0, 1]; `backbone` gives the normalization."""
    vit.requires_grad_(True)
    for block in vit.blocks:
        block.attn.fused_attn = False
    generator = NaiveSkipUNet().to(structure.device)
    adam = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.0, 0.99))

    def features(image: Tensor, module: nn.Module) -> Tensor:
        caught: list[Tensor] = []
        hook = module.register_forward_hook(lambda _module, _input, output: caught.append(output))
        vit((PUBLISHED.resize(image, backbone.patch_size) - backbone.mean) / backbone.std)
        hook.remove()
        return caught[0]

    def keys(image: Tensor) -> Tensor:
        last = vit.blocks[-1].attn
        qkv = features(image, last.qkv)
        return qkv.unflatten(-1, (3, last.num_heads, -1)).permute(2, 0, 3, 1, 4)[1]

    def cls(image: Tensor) -> Tensor:
        return features(image, vit.blocks[-1])[:, 0]

    def step() -> None:
        output, identity = generator(structure), generator(appearance)
        total = structure_loss(keys(output), keys(structure).detach())
        total = total + 10 * appearance_loss(cls(output), cls(appearance).detach())
        total = total + identity_loss(keys(identity), keys(appearance).detach())
        adam.zero_grad()
        total.backward()
        adam.step()

    return step
