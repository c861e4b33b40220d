"""The loop that takes a ViT through distillation and DINO, through accelerate: one device or many."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import torch
from accelerate.utils import set_seed
from timm.optim import param_groups_weight_decay
from torch import Tensor
from tqdm import tqdm

from splice_ff.errors import InputError
from splice_ff.networks.teachers import load_teacher
from splice_ff.pretraining.config import PretrainingConfig
from splice_ff.pretraining.images import HeldImages
from splice_ff.pretraining.probes import cls_tokens, measure
from splice_ff.pretraining.scales import loss_scales
from splice_ff.pretraining.stages import DinoStage, DistillationStage, Stage
from splice_ff.pretraining.student import Student, make_student, save_backbone
from splice_ff.training.checkpoints import checkpoint_steps
from splice_ff.training.runtime import TrainingLoop, make_accelerator, own_folder
from splice_ff.utils.console import noted_signals
from splice_ff.utils.resize import resize_shorter_side
from splice_ff.utils.schedules import cosine
from splice_ff.utils.seeding import seeded_generator
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import VIT_SIZE

STAGES = ("distillation", "dino")
SCALED_ON = 64
"""Images on which the loss scales are measured."""
DECAYING = 1
"""The group of parameters whose weights decay, as `param_groups_weight_decay` orders them."""


def pretrain(config: PretrainingConfig, quiet: bool = False) -> bool:
    """Take a ViT through the stages of a config, going on where a run in the same output folder stopped.

    `OUTPUT/distillation` and `OUTPUT/dino` get their checkpoints, `log.jsonl` and `backbone`, the folder for
    `load_backbone`: after every `save_every` steps and at the end.

    Returns:
        Whether ctrl-C ended it early; SIGTERM, as schedulers send it, is an ordinary end.

    Raises:
        InputError: images, teacher or student that cannot be used, or a folder with a run of another kind.
        DivergedError: too many steps in a row had NaN or infinite gradients; the last good state is kept.
    """
    set_seed(config.seed)
    student = make_student(config.student)
    patch = student.features.patch_size[0]
    if config.dino is not None and config.dino.local_size % patch:
        raise InputError(f"dino.local_size: {config.dino.local_size} is not a multiple of the patch, {patch} pixels")
    for size in config.distillation.sizes if config.distillation is not None else ():
        if size % patch:
            raise InputError(f"distillation.sizes: {size} is not a multiple of the patch, {patch} pixels")
    accelerator = make_accelerator(config.run.precision, config.run.trackers, config.output)
    device = accelerator.device
    if device.type == "cpu":
        student.attend_by_matmuls()
    teacher = None
    if config.distillation is not None:
        taught = config.distillation
        teacher = load_teacher(taught.teacher, taught.weights, taught.teacher_size).to(device)
    images = HeldImages(config.images, device, quiet=quiet)
    probe = None if config.probe is None else HeldImages(config.images, device, config.probe.split, quiet)
    settings = config.model_dump(mode="json")
    started = [name for name in STAGES if checkpoint_steps(config.output / name)]
    with own_folder(
        accelerator, config.output, settings, fixed=("student", "seed", *started), is_started=bool(started),
        say=lambda message: None if quiet else tqdm.write(message),
    ), noted_signals() as noted:  # fmt: skip
        if config.distillation is not None and teacher is not None:
            stage: Stage = DistillationStage(config, config.distillation, student.to(device), teacher)
            student = StageRun(config, stage, images, probe, quiet).run(noted)
        if config.dino is not None and not noted:
            stage = DinoStage(config, config.dino, student.to(device))
            StageRun(config, stage, images, probe, quiet).run(noted)
    accelerator.end_training()
    return signal.SIGINT in noted


class StageRun:
    """One stage, from its newest whole checkpoint or its beginning to its last step."""

    def __init__(
        self, config: PretrainingConfig, stage: Stage, images: HeldImages, probe: HeldImages | None, quiet: bool
    ) -> None:
        self.config, self.stage, self.images, self.probe = config, stage, images, probe
        self.folder = config.output / stage.name
        self.accelerator = make_accelerator(config.run.precision, config.run.trackers, self.folder)
        self.module = stage.module.to(self.accelerator.device)
        groups = param_groups_weight_decay(self.module, 1.0)  # of whatever size: `step` sets it; 0 would make one group
        adam = torch.optim.AdamW(groups, fused=True)
        self.loop = TrainingLoop(
            self.folder, self.accelerator, {"model": self.module}, adam, stage.optimizer, config.run,
            unit="images", circumstances={"images": len(images)}, quiet=quiet, name=stage.name,
        )  # fmt: skip
        if config.run.compile:
            for part in self.module.modules():
                if isinstance(part, ViTFeatures):
                    part.compile()

    def run(self, noted: list[int]) -> Student:
        """Take the remaining steps, until a signal is noted. Returns the ViT that is kept."""
        loop, run, probe = self.loop, self.config.run, self.config.probe
        try:
            if not loop.resume():
                with self.accelerator.autocast():
                    self.stage.measure(self.images)
                self._probe()
            batches = self.images.batches(
                self.stage.optimizer.batch_size, loop.progress.seen, self.config.seed,
                self.accelerator.process_index, self.accelerator.num_processes,
            )  # fmt: skip
            loop.model.train()
            for _ in loop.steps(noted):
                self.step(next(batches))
                if probe is not None and loop.is_due(probe.every):
                    self._probe()
                if loop.is_due(run.save_every):
                    self._save()
            if noted:
                self._save()
        finally:
            loop.log.close()
        return self.stage.product

    def step(self, batch: Tensor) -> dict[str, Tensor]:
        """One update of the weights from images (B, 3, side, side) uint8. Returns the scalar losses."""
        loop, settings, step = self.loop, self.stage.optimizer, self.loop.step_count
        loop.set_learning_rate()
        # the groups of the optimizer as it is now: a resume gives it new ones
        loop.adam.param_groups[DECAYING]["weight_decay"] = cosine(*settings.weight_decay, step, settings.steps)
        generator = seeded_generator(self.config.seed, 1 + step, self.accelerator.process_index)
        with self.accelerator.autocast():
            losses = self.stage.losses(loop.model, batch, step, generator)
        self.accelerator.backward(losses["total"])
        if loop.clip_gradients(losses["total"]):
            self.stage.before_update(step)
            loop.adam.step()
            self.stage.after_update(step, losses, self.accelerator)
        scalars = {name: value.detach() for name, value in losses.items() if value.ndim == 0}
        loop.end_step(scalars, len(batch))
        return scalars

    def _probe(self) -> None:
        """Measure [CLS] of the ViT that is kept, on the images of `probe.split`."""
        if self.probe is None or not self.accelerator.is_main_process:
            return
        product = self.stage.product.eval()
        with self.accelerator.autocast():
            features = cls_tokens(product.features, self.probe.pixels)
        loop, measures = self.loop, measure(features, self.probe.pixels, self.probe.labels)
        loop.model.train()
        loop.progress.results = measures
        loop.log.put(loop.step_count, "probe", measures)
        loop.say(f"step {loop.step_count}: {_listed(measures)}")

    def _save(self) -> None:
        """Write the ViT so far as a folder that `load_backbone` reads."""
        if not self.accelerator.is_main_process:
            return
        product = self.stage.product.eval()
        indices = torch.arange(min(SCALED_ON, len(self.images)))
        images = resize_shorter_side(self.images.at(indices).float() / 255, VIT_SIZE)
        scales = loss_scales(product.features, images) if len(images) > 1 else None
        card = {
            "stage": f"{self.stage.name}, after {self.loop.step_count} of {self.stage.optimizer.steps} steps, "
            f"{self.loop.progress.seen} images seen",
            **self.stage.facts,
            "started from": self.config.student.start_from or "random weights",
            "stages": ", ".join(name for name in STAGES if getattr(self.config, name)),
            "images": f"`{self.config.images.source}`, {self.config.images.split} ({len(self.images)})",
            "probe": _listed(self.loop.progress.results) or "not measured",
            "precision": self.config.run.precision,
        }
        teachers = list(product.teachers)
        if self.config.distillation is not None:
            teachers.append(self.config.distillation.teacher)
        save_backbone(self.folder / "backbone", product, card, scales, teachers)
        self.loop.model.train()


def _listed(measures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in measures.items())
