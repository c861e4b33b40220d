"""The two stages, seen alike by the loop in `splice_ff.pretraining.trainer`: crops of a batch in, losses out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from splice_ff.networks.teachers import Teacher
from splice_ff.pretraining.config import DinoConfig, DistillationConfig, OptimizerConfig, PretrainingConfig
from splice_ff.pretraining.crops import crops
from splice_ff.pretraining.dino import Dino
from splice_ff.pretraining.distillation import Distillation
from splice_ff.pretraining.images import HeldImages
from splice_ff.pretraining.student import Student
from splice_ff.utils.schedules import cosine, linear
from splice_ff.utils.seeding import seeded_generator

MEASURED = 1024
"""Images from which the targets' means and spreads are taken."""


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    optimizer: OptimizerConfig
    facts: dict[str, Any]
    """For the model card."""

    @property
    def module(self) -> nn.Module:
        """All that is trained and saved."""

    @property
    def product(self) -> Student:
        """The ViT that is kept."""

    def measure(self, images: HeldImages) -> None:
        """Before the first step: what has to be known of the data."""

    def losses(self, model: nn.Module, images: Tensor, step: int, generator: Generator) -> Mapping[str, Tensor]:
        """Of a batch (B, 3, side, side) uint8, through the prepared `model`; `total` is to be lowered."""

    def before_update(self, step: int) -> None:
        """After the backward pass."""

    def after_update(self, step: int, losses: Mapping[str, Tensor], accelerator: Accelerator) -> None:
        """After the optimizer's step."""


class DistillationStage:
    """`Distillation` on one random crop of every image."""

    name = "distillation"

    def __init__(self, config: PretrainingConfig, settings: DistillationConfig, student: Student, teacher: Teacher):
        self.config, self.settings, self.optimizer = config, settings, settings.optimizer
        self.module = Distillation(student, teacher, settings)
        self.facts = {"teacher": f"`{settings.teacher}`, sees {settings.teacher_size or 'the same'} px"}
        if (adversary := settings.adversary) is not None:
            low, high = adversary.epsilon
            self.facts["adversary"] = f"{adversary.steps} steps, {adversary.norm}, {low:g} to {high:g} / 255"

    @property
    def product(self) -> Student:
        """The student, or its moving average."""
        return self.module.product

    def crops(self, images: Tensor, generator: Generator) -> Tensor:
        """(B, 3, S, S) of one of the sizes."""
        sizes = self.settings.sizes or (_size(self.product),)
        size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        return crops(images, size, self.settings.area, self.config.views, generator)

    def measure(self, images: HeldImages) -> None:
        """Means and spreads of the targets."""
        generator = seeded_generator(self.config.seed, 0)
        batches = [self.crops(batch, generator) for batch in _sample(images, self.config.seed)]
        self.module.measure(batches, fit_heads=self.config.student.start_from is not None)

    def losses(self, model: nn.Module, images: Tensor, step: int, generator: Generator) -> Mapping[str, Tensor]:
        """See `Distillation`."""
        epsilon = 0.0
        if (adversary := self.settings.adversary) is not None:
            epsilon = linear(*adversary.epsilon, step, round(adversary.rise * self.optimizer.steps)) / 255
        return model(self.crops(images, generator), epsilon)

    def before_update(self, step: int) -> None:
        """Nothing to do."""

    def after_update(self, step: int, losses: Mapping[str, Tensor], accelerator: Accelerator) -> None:
        """The moving average follows."""
        self.module.update_average(step)


class DinoStage:
    """`Dino` on two large and some small crops of every image; temperatures and momentum follow their schedules."""

    name = "dino"

    def __init__(self, config: PretrainingConfig, settings: DinoConfig, student: Student) -> None:
        self.config, self.settings, self.optimizer = config, settings, settings.optimizer
        self.module = Dino(student, settings)
        self.facts = {"views": f"2 and {settings.local_views} of {settings.local_size} px"}

    @property
    def product(self) -> Student:
        """The teacher: "it has better performance than the student throughout the training" (section 3.1)."""
        return self.module.teacher

    def views(self, images: Tensor, generator: Generator) -> list[Tensor]:
        """Two global views, then the local ones."""
        settings, size = self.settings, _size(self.product)
        kinds = [(size, settings.global_area)] * 2 + [(settings.local_size, settings.local_area)] * settings.local_views
        return [crops(images, side, area, self.config.views, generator) for side, area in kinds]

    def measure(self, images: HeldImages) -> None:
        """Means and spreads of the targets."""
        generator, size = seeded_generator(self.config.seed, 0), _size(self.product)
        batches = _sample(images, self.config.seed)
        self.module.measure(
            [crops(batch, size, self.settings.global_area, self.config.views, generator) for batch in batches]
        )

    def losses(self, model: nn.Module, images: Tensor, step: int, generator: Generator) -> Mapping[str, Tensor]:
        """See `Dino`."""
        warmup = round(self.settings.temperature_warmup * self.optimizer.steps)
        return model(self.views(images, generator), linear(*self.settings.teacher_temperature, step, warmup))

    def before_update(self, step: int) -> None:
        """The prototypes keep still at first ("freeze last layer", appendix)."""
        if step < self.settings.freeze_last_layer * self.optimizer.steps:
            self.module.head.prototypes.grad = None

    def after_update(self, step: int, losses: Mapping[str, Tensor], accelerator: Accelerator) -> None:
        """Center and teacher follow."""
        center = accelerator.reduce(losses["batch_center"].detach(), "mean")
        self.module.after_step(center, cosine(self.settings.momentum, 1.0, step, self.optimizer.steps))


def _size(student: Student) -> int:
    return int(student.vit.patch_embed.img_size[0])


def _sample(images: HeldImages, seed: int) -> list[Tensor]:
    """Some batches; the same in every process."""
    size = min(64, len(images))
    return list(islice(images.batches(size, 0, seed), -(-min(MEASURED, len(images)) // size)))
