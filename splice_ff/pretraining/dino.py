"""Second stage: DINO, self-distillation with no labels.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021. Sections are those of the paper.
Different from it: color changes mildly (see `splice_ff.pretraining.crops`) and [CLS] also learns the crop's color
and texture, because here it has to carry appearance.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splice_ff.pretraining.config import DinoConfig
from splice_ff.pretraining.statistics import Standardize, appearance_statistics
from splice_ff.pretraining.student import Student
from splice_ff.utils.averaging import move_average


class DinoHead(nn.Module):
    """The projection head (section 3.1, "Network architecture"): (B, D) to scores of K prototypes, (B, K).

    An MLP of three layers, l2-normalized, then a weight-normalized layer without bias whose gain stays 1.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, cls: Tensor) -> Tensor:
        """(B, D) to (B, K), in [-1, 1]."""
        return F.linear(F.normalize(self.mlp(cls), dim=-1, eps=1e-6), F.normalize(self.prototypes, dim=-1))


def dino_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor, student_temperature: float, temperature: float
) -> Tensor:
    """Cross-entropy of the teacher's distributions and the student's over all pairs of different views (eq. 1 to 3).

    Args:
        student: scores (B, K) of each view, the global ones first.
        teacher: scores (B, K) of the global views, in the same order.
        center: (K,) taken from the teacher's scores (section 3.1, "Avoiding collapse").
        student_temperature, temperature: the student's, the teacher's, which is lower: sharpening.
    """
    wanted = [F.softmax((scores.float() - center) / temperature, -1) for scores in teacher]
    told = [F.log_softmax(scores.float() / student_temperature, -1) for scores in student]
    pairs = [-(p * q).sum(-1).mean() for i, p in enumerate(wanted) for j, q in enumerate(told) if i != j]
    return torch.stack(pairs).mean()


class Dino(nn.Module):
    """Student, its moving average the teacher, and the heads; a call gives the losses of a batch's views."""

    center: Tensor

    def __init__(self, student: Student, settings: DinoConfig) -> None:
        super().__init__()
        self.student, self.settings = student.unfreeze(), settings
        width = student.features.width
        self.head = DinoHead(width, settings.hidden, settings.bottleneck, settings.prototypes)
        self.teacher: Any = copy.deepcopy(student).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(settings.prototypes))
        count = appearance_statistics(torch.zeros(1, 3, 32, 32)).shape[1]
        self.statistics_head = nn.Linear(width, count)
        self.statistics_targets = Standardize(count)

    def train(self, mode: bool = True) -> Dino:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.train(False)
        return self

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Learn mean and spread of color and texture from some batches of crops."""
        self.statistics_targets.measure(appearance_statistics(images) for images in batches)

    def forward(self, views: Sequence[Tensor], temperature: float) -> dict[str, Tensor]:
        """Losses of views (B, 3, s, s) of the same images, two global ones first, then local ones.

        Returns:
            `total`; `dino`; `statistics`, the share of color's and texture's variance that [CLS] does not tell;
            `entropy` of the teacher's mean distribution in nats: 0 when it has collapsed onto one prototype, ln K at
            most; and, for `after_step`, `batch_center` (K,).
        """
        global_views = torch.cat(list(views[:2]))
        with torch.no_grad():
            taught = self.teacher_head(_cls(self.teacher, global_views)).float()
        cls = [_cls(self.student, global_views)]
        if len(views) > 2:  # local views share a size: one pass for all
            cls.append(_cls(self.student, torch.cat(list(views[2:]))))
        scores = self.head(torch.cat(cls))
        settings = self.settings
        loss = dino_loss(
            scores.chunk(len(views)), taught.chunk(2), self.center, settings.student_temperature, temperature
        )
        told = self.statistics_head(cls[0]).float()
        statistics = F.mse_loss(told, self.statistics_targets(appearance_statistics(global_views)))
        mean = F.softmax((taught - self.center) / temperature, -1).mean(0)
        return {
            "total": loss + settings.statistics * statistics,
            "dino": loss,
            "statistics": statistics,
            "entropy": -(mean * mean.clamp_min(1e-12).log()).sum(),
            "batch_center": taught.mean(0),
        }

    @torch.no_grad()
    def after_step(self, batch_center: Tensor, momentum: float) -> None:
        """Move the center (eq. 4), over all processes, and the teacher."""
        self.center.lerp_(batch_center, 1 - self.settings.center_momentum)
        move_average(self.teacher, self.student, momentum)
        move_average(self.teacher_head, self.head, momentum)


def _cls(student: Any, images: Tensor) -> Tensor:
    """Normed deepest [CLS], (B, D)."""
    (tokens,) = student(images).values()
    return tokens[:, 0]
