"""First stage: the student's tokens are made to tell, linearly, what a frozen network's feature maps hold.

Patch tokens learn the two deepest maps, place by place; [CLS] the means and spreads of all maps, and the crop's color
and texture: it is to know what is there as well as how it looks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from splice_ff.pretraining.config import DistillationConfig
from splice_ff.pretraining.statistics import Standardize, appearance_statistics, pooled
from splice_ff.pretraining.student import Student
from splice_ff.pretraining.teachers import Teacher


class Distillation(nn.Module):
    """Student and heads; a call gives the losses of a batch. The teacher is no part of what is saved.

    Args:
        student: the ViT to train.
        teacher: on the same device.
        settings: weights of the terms.
    """

    def __init__(self, student: Student, teacher: Teacher, settings: DistillationConfig) -> None:
        super().__init__()
        self.student, self.settings = student, settings
        self._teacher = [teacher]  # in a list: not a submodule
        self.layers = patch_layers(student.features.depth, len(teacher.channels))
        width = student.features.width
        maps = teacher.channels[-len(self.layers) :]
        vectors = [2 * c for c in teacher.channels] + [appearance_statistics(torch.zeros(1, 3, 32, 32)).shape[1]]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.layers[:-1])  # the deepest has its own
        self.patch_heads = nn.ModuleList(nn.Linear(width, c) for c in maps)
        self.cls_heads = nn.ModuleList(nn.Linear(width, c) for c in vectors)
        self.patch_targets = nn.ModuleList(Standardize(c) for c in maps)
        self.cls_targets = nn.ModuleList(Standardize(c) for c in vectors)

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Learn the targets' means and spreads from some batches of crops."""
        found = [self._targets(images) for images in batches]
        for group, modules in enumerate((self.patch_targets, self.cls_targets)):
            for i, module in enumerate(modules):
                module.measure(targets[group][i] for targets in found)  # type: ignore[operator]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Losses of crops (B, 3, S, S) in [0, 1].

        Returns:
            `total`; and the shares of the targets' variance that are not predicted yet: `patches` (mean of the two
            maps), `cls` (mean of the maps' statistics) and `statistics` (color and texture).
        """
        patch_targets, cls_targets = self._targets(images)
        tokens = self.student(images, self.layers)
        normed = [norm(tokens[i]) for norm, i in zip(self.norms, self.layers, strict=False)] + [tokens[self.layers[-1]]]
        prefix = self.student.features.prefix_tokens
        patches = [
            F.mse_loss(head(x[:, prefix:]).float(), standard(target))
            for head, x, standard, target in zip(
                self.patch_heads, normed, self.patch_targets, patch_targets, strict=True
            )
        ]
        told = [
            F.mse_loss(head(normed[-1][:, 0]).float(), standard(target))
            for head, standard, target in zip(self.cls_heads, self.cls_targets, cls_targets, strict=True)
        ]
        losses = {"patches": torch.stack(patches).mean(), "cls": torch.stack(told[:-1]).mean(), "statistics": told[-1]}
        weights = {name: getattr(self.settings, name) for name in losses}
        return {"total": torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), **losses}

    @torch.no_grad()
    def _targets(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """For the patches (B, h * w, C) of each used map, for [CLS] (B, C'); not standardized."""
        maps = [m.float() for m in self._teacher[0](images)]
        down, across = self.student.features.patch_size
        grid = (images.shape[-2] // down, images.shape[-1] // across)
        patches = [rearrange(_to_grid(m, grid), "b c h w -> b (h w) c") for m in maps[-len(self.layers) :]]
        return patches, [*(pooled(m) for m in maps), appearance_statistics(images)]


def patch_layers(depth: int, maps: int) -> list[int]:
    """Layers whose patch tokens learn the last two maps: two thirds up, and the deepest. One map: the deepest."""
    return [round(depth * 2 / 3) - 1, depth - 1][-min(maps, 2) :]


def _to_grid(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Averaged where the student's grid is coarser, interpolated where it is finer."""
    if feature_map.shape[-2] >= grid[0]:
        return F.adaptive_avg_pool2d(feature_map, grid)
    return F.interpolate(feature_map, grid, mode="bilinear", align_corners=False)
