"""First stage: the student's tokens are made to tell, linearly, what a frozen network's feature maps hold.

Patch tokens learn the two deepest maps, place by place; [CLS] the means and spreads of all maps, and the crop's color
and texture: it is to know what is there as well as how it looks. The self-similarity of the deepest keys, which the
structure loss compares, may learn that of the maps; and the deepest [CLS] tokens, whose plain distance the appearance
loss takes, may learn to lie as far from each other as the teacher says. A student that starts from a ViT worth keeping
may also be held to what that one makes of the crops (`keep`). With an adversary the student learns all of this from
crops that were moved to mislead it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from splice_ff.networks.teachers import Teacher
from splice_ff.pretraining.adversary import moved_up
from splice_ff.pretraining.config import DistillationConfig
from splice_ff.pretraining.relations import relations, relations_loss
from splice_ff.pretraining.statistics import Standardize, appearance_statistics, pooled
from splice_ff.pretraining.student import Student
from splice_ff.utils.averaging import move_average, ramped_decay
from splice_ff.vit.features import Features, self_similarity

KEPT = ("kept_tokens", "kept_keys", "kept_cls")
"""What a student keeps of its start; not plainly "keys", which a module's method is called."""


@dataclass(frozen=True)
class _Targets:
    """What a batch of crops is to be told as, standardized."""

    patches: list[Tensor]
    """(B, h * w, C) of each used map, the deepest last."""
    cls: list[Tensor]
    """(B, C') of each map, the deepest last, and of color and texture."""
    similarity: Tensor
    """Cosines of the places of the deepest maps, (B, h * w, h * w); of the start's keys if those are kept."""
    relations: Tensor
    """How the crops resemble each other by all that [CLS] is to tell, (B, B)."""
    kept: dict[str, Tensor]
    """What the start makes of the crops, as `KEPT` names it: the deepest tokens and keys (B, T, D) and [CLS] (B, D)."""


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
        self.averaged: Any = copy.deepcopy(student).requires_grad_(False) if settings.ema_decay else None
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
        # Never saved: every process makes it from the same start, also one that goes on from a checkpoint.
        self._start = [copy.deepcopy(student.features).requires_grad_(False)] if settings.keep else []
        kept = [name for name in KEPT if self._start and not (name == "kept_cls" and settings.relations)]
        self.kept_targets = nn.ModuleDict({name: Standardize(width) for name in kept})

    @property
    def product(self) -> Student:
        """The ViT that is kept."""
        return self.student if self.averaged is None else self.averaged

    def measure(self, batches: Iterable[Tensor], fit_heads: bool = False) -> None:
        """Learn the targets' means and spreads from some batches of crops.

        Args:
            batches: each (B, 3, S, S) in [0, 1].
            fit_heads: let the heads begin as those that tell the targets best. Random heads would pull a student that
                knows something away from it; a new student's tokens differ too little to fit anything to them.
        """
        batches = list(batches)
        found = [self._raw_targets(images) for images in batches]
        for group, modules in enumerate((self.patch_targets, self.cls_targets)):
            for i, module in enumerate(modules):
                module.measure(targets[group][i] for targets in found)  # type: ignore[operator]
        if self._start:
            kept = [self._kept(self._start[0](images, **self._deepest)) for images in batches]
            for name, module in self.kept_targets.items():
                module.measure(features[name] for features in kept)  # type: ignore[operator]
        if not fit_heads:
            return
        with torch.no_grad():
            told = [self._told(self._seen(images)) for images in batches]
        targets = [self._targets(images) for images in batches]
        for i, head in enumerate(self.patch_heads):
            fit_linear(head, torch.cat([x[i].flatten(0, 1) for x, _ in told]), [t.patches[i] for t in targets])
        for i, head in enumerate(self.cls_heads):
            fit_linear(head, torch.cat([cls for _, cls in told]), [t.cls[i] for t in targets])

    def forward(self, images: Tensor, epsilon: float = 0.0) -> dict[str, Tensor]:
        """Losses of crops (B, 3, S, S) in [0, 1], of which the student sees ones that are at most `epsilon` away.

        Returns:
            `total`; and the shares of the targets' variance that are not predicted yet: `patches` (mean of the two
            maps), `cls` (mean of the shallower maps' statistics), `deepest` (the deepest map's), `statistics` (color
            and texture) and, where they have a weight, `relations` (of the crops), `keys` (self-similarity) and `keep`
            (the start's features).
        """
        targets = self._targets(images)
        if self.settings.adversary is not None and epsilon > 0:
            total = lambda seen: self._losses(seen, targets)["total"]  # noqa: E731
            images = moved_up(images, total, epsilon, self.settings.adversary)
        return self._losses(images, targets)

    def _losses(self, images: Tensor, targets: _Targets) -> dict[str, Tensor]:
        seen = self._seen(images)
        places, cls = self._told(seen)
        patches = [
            F.mse_loss(head(x).float(), target)
            for head, x, target in zip(self.patch_heads, places, targets.patches, strict=True)
        ]
        told = [F.mse_loss(head(cls).float(), target) for head, target in zip(self.cls_heads, targets.cls, strict=True)]
        losses = {
            "patches": torch.stack(patches).mean(),
            "cls": torch.stack(told[:-2] or told[:1]).mean(),
            "deepest": told[-2],
            "statistics": told[-1],
        }
        if self.settings.relations:
            losses["relations"] = relations_loss(seen.tokens[self.layers[-1]][:, 0], targets.relations)
        if self.settings.keys:
            # The variance between images: what all images have in common should not hide what sets them apart.
            between = targets.similarity.var(0, correction=0).mean()
            losses["keys"] = F.mse_loss(self._similarity(seen), targets.similarity) / between
        if self._start:
            kept = self._kept(seen)
            shares = [F.mse_loss(self.kept_targets[name](kept[name]), target) for name, target in targets.kept.items()]
            losses["keep"] = torch.stack(shares).mean()
        weights = {name: getattr(self.settings, name) for name in losses}
        return {"total": torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), **losses}

    def _seen(self, images: Tensor) -> Features:
        """The student's tokens of the used layers, and its deepest keys if they have a weight."""
        needs_keys = self.settings.keys or self._start
        return self.student.features(images, tokens=self.layers, keys=self.layers[-1:] if needs_keys else [])

    @property
    def _deepest(self) -> dict[str, list[int]]:
        return {"tokens": self.layers[-1:], "keys": self.layers[-1:]}

    def _kept(self, seen: Features) -> dict[str, Tensor]:
        """What the losses of this project read, as `KEPT` names it, and the deepest patches; in float32."""
        keys, tokens = seen.keys[self.layers[-1]].float(), seen.tokens[self.layers[-1]].float()
        features = (tokens, rearrange(keys, "b heads t d -> b t (heads d)"), tokens[:, 0])
        return dict(zip(KEPT, features, strict=True))

    def _similarity(self, seen: Features) -> Tensor:
        """Of the deepest patches' keys, (B, h * w, h * w)."""
        prefix = self.student.features.prefix_tokens
        return self_similarity(seen.keys[self.layers[-1]])[:, prefix:, prefix:]

    def _told(self, seen: Features) -> tuple[list[Tensor], Tensor]:
        """What the heads read: normed patches (B, h * w, D) of each used layer, and the deepest [CLS] (B, D)."""
        normed = [norm(seen.tokens[i]) for norm, i in zip(self.norms, self.layers, strict=False)]
        normed.append(self.student.vit.norm(seen.tokens[self.layers[-1]]))
        return [x[:, self.student.features.prefix_tokens :] for x in normed], normed[-1][:, 0]

    def update_average(self, step: int) -> None:
        """Let the moving average follow, faster at first: the initial weights should not linger."""
        if self.averaged is None:
            return
        move_average(self.averaged, self.student, ramped_decay(self.settings.ema_decay, step + 1))

    @torch.no_grad()
    def _targets(self, images: Tensor) -> _Targets:
        raw_patches, raw_cls = self._raw_targets(images)
        patches: list[Tensor] = [f(x) for f, x in zip(self.patch_targets, raw_patches, strict=True)]
        cls: list[Tensor] = [f(x) for f, x in zip(self.cls_targets, raw_cls, strict=True)]
        if not self._start:
            # Each map counts as much as the other, however many channels it has.
            places = F.normalize(torch.cat([F.normalize(x, dim=-1) for x in patches], -1), dim=-1)
            return _Targets(patches, cls, places @ places.mT, self._relations(cls), {})
        start = self._start[0](images, **self._deepest)
        features = self._kept(start)
        kept: dict[str, Tensor] = {name: target(features[name]) for name, target in self.kept_targets.items()}
        return _Targets(patches, cls, self._similarity(start), self._relations(cls), kept)

    def _relations(self, cls: list[Tensor]) -> Tensor:
        """By each target as much as its loss weighs."""
        settings, shallower = self.settings, max(1, len(cls) - 2)
        return relations(cls, [settings.cls / shallower] * (len(cls) - 2) + [settings.deepest, settings.statistics])

    @torch.no_grad()
    def _raw_targets(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """For the patches (B, h * w, C) of each used map, for [CLS] (B, C'); not standardized."""
        maps = [m.float() for m in self._teacher[0](images)]
        down, across = self.student.features.patch_size
        grid = (images.shape[-2] // down, images.shape[-1] // across)
        patches = [rearrange(_to_grid(m, grid), "b c h w -> b (h w) c") for m in maps[-len(self.layers) :]]
        return patches, [*(pooled(m) for m in maps), appearance_statistics(images)]


def patch_layers(depth: int, maps: int) -> list[int]:
    """Layers whose patch tokens learn the last two maps: two thirds up, and the deepest. One map: the deepest."""
    return [round(depth * 2 / 3) - 1, depth - 1][-min(maps, 2) :]


@torch.no_grad()
def fit_linear(head: Any, x: Tensor, targets: Iterable[Tensor], penalty: float = 1e-2) -> None:
    """Set `head`, an `nn.Linear`, to the ridge regression from rows x (N, D) to targets (..., C), of N rows in all.

    The penalty adds to the inputs' variances, which are about 1 in the channels of normed tokens.
    """
    x, y = x.double(), torch.cat([t.flatten(0, -2) for t in targets]).double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    gram = (x - x_mean).T @ (x - x_mean) / len(x)
    gram += penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, (x - x_mean).T @ (y - y_mean) / len(x)).T
    head.weight.copy_(weight)
    head.bias.copy_(y_mean - weight @ x_mean)


def _to_grid(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Averaged where the student's grid is coarser, interpolated where it is finer."""
    if feature_map.shape[-2] >= grid[0]:
        return F.adaptive_avg_pool2d(feature_map, grid)
    return F.interpolate(feature_map, grid, mode="bilinear", align_corners=False)
