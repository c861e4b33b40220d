"""The loop that takes a ViT through distillation and DINO, through accelerate: one device or many."""

from __future__ import annotations

import json
import math
import signal
import time
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from timm.optim import param_groups_weight_decay
from torch import Tensor
from tqdm import tqdm

from splice_ff.errors import DivergedError, InputError
from splice_ff.pretraining.config import PretrainingConfig
from splice_ff.pretraining.images import HeldPictures
from splice_ff.pretraining.log import StageLog
from splice_ff.pretraining.probes import cls_tokens, measure
from splice_ff.pretraining.scales import loss_scales
from splice_ff.pretraining.stages import DinoStage, DistillationStage, Stage
from splice_ff.pretraining.student import Student, make_student, save_backbone
from splice_ff.pretraining.teachers import load_teacher
from splice_ff.training.checkpoints import newest_checkpoint, save_checkpoint
from splice_ff.training.runtime import agree, make_accelerator
from splice_ff.utils.console import noted_signals, progress_bar
from splice_ff.utils.files import atomic_write
from splice_ff.utils.resize import resize_shorter_side
from splice_ff.utils.schedules import cosine, warmed_up
from splice_ff.utils.seeding import seeded_generator
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import VIT_SIZE

MAX_BAD_STEPS = 10
"""So many steps in a row with NaN or infinite gradients end the run."""
SCALED_ON = 64
"""Images on which the loss scales are measured."""


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
    _check_and_write(config)
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
        settings = config.distillation
        teacher = load_teacher(settings.teacher, settings.weights, settings.teacher_size).to(device)
    pictures = HeldPictures(config.images, device, quiet=quiet)
    probe = None if config.probe is None else HeldPictures(config.images, device, config.probe.split, quiet)
    with noted_signals() as noted:
        if config.distillation is not None and teacher is not None:
            stage: Stage = DistillationStage(config, config.distillation, student.to(device), teacher)
            student = StageRun(config, stage, pictures, probe, noted, quiet).run()
        if config.dino is not None and not noted:
            stage = DinoStage(config, config.dino, student.to(device))
            StageRun(config, stage, pictures, probe, noted, quiet).run()
    accelerator.end_training()
    return signal.SIGINT in noted


class StageRun:
    """One stage, from its newest whole checkpoint or its beginning to its last step."""

    def __init__(
        self, config: PretrainingConfig, stage: Stage, pictures: HeldPictures, probe: HeldPictures | None,
        noted: list[int], quiet: bool,
    ) -> None:  # fmt: skip
        self.config, self.stage, self.pictures, self.probe = config, stage, pictures, probe
        self.noted, self.quiet = noted, quiet
        self.folder = config.output / stage.name
        self.accelerator = make_accelerator(config.run.precision, config.run.trackers, self.folder)
        self.module = stage.module.to(self.accelerator.device)
        self.step_count = 0
        self.bad_in_a_row = 0
        self.found: dict[str, float] = {}
        """What the last probe found."""
        decays = stage.optimizer.weight_decay
        adam = torch.optim.AdamW(param_groups_weight_decay(self.module, decays[0]), fused=True)
        self.decaying = [group for group in adam.param_groups if group["weight_decay"]]
        self.model, self.adam = self.accelerator.prepare(self.module, adam)
        self.accelerator.register_for_checkpointing(self)
        self.log = StageLog(self.folder, self.accelerator, bool(config.run.trackers))
        if config.run.compile:
            for part in self.module.modules():
                if isinstance(part, ViTFeatures):
                    part.compile()

    def run(self) -> Student:
        """Take the remaining steps. Returns the ViT that is kept."""
        checkpoint = newest_checkpoint(self.folder)
        if checkpoint is None:
            with self.accelerator.autocast():
                self.stage.measure(self.pictures)
            self._probe()
        else:
            self.accelerator.load_state(str(checkpoint))
            self.log.say(f"{self.stage.name}: going on from step {self.step_count} ({checkpoint})")
        if self.step_count < self.stage.optimizer.steps:
            self._train()
        for tracker in self.accelerator.trackers:  # not `end_training`, which would part the processes
            tracker.finish()
        return self.stage.product

    def _train(self) -> None:
        settings, run = self.stage.optimizer, self.config.run
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        batches = self.pictures.batches(settings.batch_size, self.step_count, self.config.seed, *ranks)
        last_checkpoint = time.monotonic()
        self.model.train()
        with self._bar() as bar:
            while self.step_count < settings.steps:
                self.step(next(batches))
                bar.update()
                if self._is_due(run.log_every):
                    means = self.log.write(self.step_count, learning_rate=self.adam.param_groups[0]["lr"])
                    bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)
                if self.config.probe is not None and self._is_due(self.config.probe.every):
                    self._probe()
                if self._is_due(run.save_every):
                    self._save()
                minutes = (time.monotonic() - last_checkpoint) / 60
                stop, late = agree(self.accelerator, bool(self.noted), minutes > run.checkpoint_minutes)
                diverged = self.bad_in_a_row >= MAX_BAD_STEPS
                if stop or late or diverged or self.step_count == settings.steps:
                    save_checkpoint(self.accelerator, self.folder, self.step_count, run.checkpoints_total_limit)
                    last_checkpoint = time.monotonic()
                if diverged:
                    raise DivergedError(f"{self.bad_in_a_row} steps in a row without finite gradients; weights kept")
                if stop:
                    self._save()
                    self.log.say(f"stopped at step {self.step_count}; the same command goes on from there")
                    return

    def step(self, batch: Tensor) -> dict[str, Tensor]:
        """One update of the weights from images (B, 3, side, side) uint8. Returns the scalar losses."""
        settings, step = self.stage.optimizer, self.step_count
        for group in self.adam.param_groups:
            group["lr"] = warmed_up(settings.learning_rate, step, settings.warmup_steps, settings.steps)
        for group in self.decaying:
            group["weight_decay"] = cosine(*settings.weight_decay, step, settings.steps)
        generator = seeded_generator(self.config.seed, 1 + step, self.accelerator.process_index)
        with self.accelerator.autocast():
            losses = self.stage.losses(self.model, batch, step, generator)
        self.accelerator.backward(losses["total"])
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        # Gradients are averages over all processes, so that all of them decide alike.
        if math.isfinite(float(norm)):
            self.stage.before_update(step)
            self.adam.step()
            self.stage.after_update(step, losses, self.accelerator)
            self.bad_in_a_row = 0
        else:
            self.bad_in_a_row += 1
        self.adam.zero_grad()
        self.step_count += 1
        scalars = {name: value.detach() for name, value in losses.items() if value.ndim == 0}
        self.log.add({**scalars, "gradient_norm": norm}, len(batch))
        return scalars

    def _probe(self) -> None:
        """Measure [CLS] of the ViT that is kept, on the images of `probe.split`."""
        if self.probe is None or not self.accelerator.is_main_process:
            return
        product = self.stage.product.eval()
        with self.accelerator.autocast():
            features = cls_tokens(product.features, self.probe.pixels)
        self.found = measure(features, self.probe.pixels, self.probe.labels)
        self.model.train()
        self.log.put(self.step_count, "probe", self.found)
        told = ", ".join(f"{name} {value:.3f}" for name, value in self.found.items())
        self.log.say(f"{self.stage.name}, step {self.step_count}: {told}")

    def _save(self) -> None:
        """Write the ViT so far as a folder that `load_backbone` reads."""
        if not self.accelerator.is_main_process:
            return
        product = self.stage.product.eval()
        indices = torch.arange(min(SCALED_ON, len(self.pictures)))
        images = resize_shorter_side(self.pictures.at(indices).float() / 255, VIT_SIZE)
        scales = loss_scales(product.features, images) if len(images) > 1 else None
        pictures = self.step_count * self.stage.optimizer.batch_size * self.accelerator.num_processes
        card = {
            "stage": f"{self.stage.name}, after {self.step_count} of {self.stage.optimizer.steps} steps, "
            f"{pictures} images seen",
            **self.stage.facts,
            "started from": self.config.student.start_from or "random weights",
            "stages": ", ".join(name for name in ("distillation", "dino") if getattr(self.config, name)),
            "pictures": f"`{self.config.images.source}`, {self.config.images.split} ({len(self.pictures)})",
            "probe": ", ".join(f"{name} {value:.3f}" for name, value in self.found.items()) or "not measured",
            "precision": self.config.run.precision,
        }
        teachers = list(product.teachers)
        if self.config.distillation is not None:
            teachers.append(self.config.distillation.teacher)
        save_backbone(self.folder / "backbone", product, card, scales, teachers)
        self.model.train()

    def state_dict(self) -> dict[str, Any]:
        """Counters, for accelerate's checkpoint."""
        return {"step_count": self.step_count, "bad_in_a_row": self.bad_in_a_row, "found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for key, value in state.items():
            setattr(self, key, value)

    def _is_due(self, every: int) -> bool:
        return self.step_count % every == 0 or self.step_count == self.stage.optimizer.steps

    def _bar(self) -> tqdm:  # type: ignore[type-arg]
        hidden = self.quiet or not self.accelerator.is_main_process
        return progress_bar(self.stage.optimizer.steps, "step", hidden, self.step_count, self.stage.name)


def _check_and_write(config: PretrainingConfig) -> None:
    """Write config.yaml; refuse a folder where another ViT, or the same in another way, has been trained so far."""
    file, now = config.output / "config.yaml", json.loads(config.model_dump_json())
    stages = [name for name in ("distillation", "dino") if newest_checkpoint(config.output / name) is not None]
    if stages and file.is_file():
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        for section in ("student", "seed", *stages):
            if before[section] != now[section]:
                raise InputError(f"{config.output}: holds a run with another {section} ({before[section]})")
    config.output.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda path: path.write_text(yaml.safe_dump(now, sort_keys=False)))
